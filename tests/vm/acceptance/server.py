# Serves a folder and its git repositories over HTTPS: server.py FOLDER CERTIFICATE KEY. Prints the port.
import http.server
import os
import ssl
import subprocess
import sys

ADDRESS = "127.0.0.2"
FOLDER = os.path.abspath(sys.argv[1])


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args):
        super().__init__(*args, directory=FOLDER)

    def do_GET(self):
        if ".git/" in self.path:
            self.run_git(b"")
        else:
            super().do_GET()

    def do_POST(self):
        self.run_git(self.rfile.read(int(self.headers["Content-Length"])))

    def run_git(self, body):
        path, _, query = self.path.partition("?")
        environment = {
            "GIT_PROJECT_ROOT": FOLDER, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
            "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": self.client_address[0],
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }
        answer = subprocess.run(
            ["git", "http-backend"], input=body, stdout=subprocess.PIPE, env={**os.environ, **environment}, check=True
        ).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        # The handshake belongs to the thread of the connection.
        socket, address = super().get_request()
        return context.wrap_socket(socket, server_side=True, do_handshake_on_connect=False), address


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server = Server((ADDRESS, 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
