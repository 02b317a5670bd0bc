"""Greets by name: http://localhost:8000/?name=kiln"""

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def greet():
    return {"greeting": f"Hello, {request.args.get('name', 'world')}!"}
