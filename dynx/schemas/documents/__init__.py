"""Dataclasses that describe every document and event line that dynx prints or writes; the JSON Schemas are generated from them.

A field is a key: its annotation says the type, the limits and, in words, what it holds. A class's docstring describes the
object. `fields` holds what annotations are made of. A class with a key "schema" is a document that goes by that name.
Nothing here imports the rest of dynx, and annotations are evaluated: no `from __future__ import annotations`.
"""
