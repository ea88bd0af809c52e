"""Stores a block of KV in the pool that LMCACHE_REMOTE_URL names, and reads it, by LMCache's own messages."""
import os
import socket
import urllib.parse

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.protocol import ClientCommand, ClientMetaMessage, ServerMetaMessage, ServerReturnCode

where = urllib.parse.urlparse(os.environ["LMCACHE_REMOTE_URL"])
block = os.urandom(1 << 20)
key = CacheEngineKey("m", 1, 0, 0x5EED, torch.uint8)
pool = socket.create_connection((where.hostname, where.port), timeout=60)


def say(command, length=0):
    message = ClientMetaMessage(command, key, length, MemoryFormat.KV_2LTD, torch.uint8, torch.Size((length, 0, 0, 0)))
    pool.sendall(message.serialize())


def answer():
    return ServerMetaMessage.deserialize(read(ServerMetaMessage.packlength()))


def read(n):
    data = b""
    while len(data) < n:
        part = pool.recv(n - len(data))
        assert part, "the server has hung up"
        data += part
    return data


say(ClientCommand.GET)
assert answer().code == ServerReturnCode.FAIL, "nobody has stored it yet"
say(ClientCommand.PUT, len(block))
pool.sendall(block)
say(ClientCommand.GET)
got = answer()
assert got.code == ServerReturnCode.SUCCESS and read(got.length) == block
print("stored and read", got.length)
