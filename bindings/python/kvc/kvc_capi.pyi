# SWIG generates the module at build time. It is not part of the public interface.
from typing import Any

def __getattr__(name: str) -> Any: ...
