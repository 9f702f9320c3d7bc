"""A receiver of webhooks over HTTPS, as somebody else would write one: it checks signatures with Python's own hmac.

Its answer stands in the file `answer`: a status, with the seconds of a Retry-After behind it, or `hang`. Each request is a line of
`requests`.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import ssl
import sys
import time

directory, address, port, certificate, key, secret = sys.argv[1:]


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
        given = self.headers.get("webhook-signature", "").split()
        with open(os.path.join(directory, "answer")) as file:
            answer = file.read().split()
        request = {
            "path": self.path,
            "id": self.headers["webhook-id"],
            "signed": any(hmac.compare_digest(f"v1,{expected}", one) for one in given),
            "age": abs(time.time() - int(self.headers["webhook-timestamp"])),
            "answer": answer[0],
            "body": json.loads(body),
        }
        with open(os.path.join(directory, "requests"), "a") as file:
            file.write(json.dumps(request) + "\n")
        if answer[0] == "hang":
            time.sleep(3600)
        self.send_response(int(answer[0]))
        for seconds in answer[1:]:
            self.send_header("Retry-After", seconds)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((address, int(port)), Receiver)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
