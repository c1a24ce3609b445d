"""Run by locust: users who each read one long stream after the other, to its end."""

from locust import HttpUser, task


class Reader(HttpUser):
    @task
    def read(self) -> None:
        body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "slowly, please"}]}
        with self.client.post("/v1/chat/completions", json=body, stream=True, catch_response=True) as reply:
            lines = [line for line in reply.iter_lines() if line]
            if reply.status_code != 200 or lines[-1] != b"data: [DONE]":
                reply.failure(f"{reply.status_code}: {lines[-1:]}")
            else:
                reply.success()
