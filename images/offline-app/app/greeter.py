#!/usr/bin/python3
"""Answers every request with a greeting; the text comes from the package kiln-greeting."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

GREETING = Path("/usr/share/kiln-greeting/greeting.txt").read_bytes()


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(GREETING)


HTTPServer(("127.0.0.1", 8000), Greeter).serve_forever()
