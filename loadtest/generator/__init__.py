"""The load generator: locust users that stream chats. Only `locustfile.py` and what it imports may import gevent."""
