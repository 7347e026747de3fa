"""Folders whose weights are stored in few bits (GPTQ, AWQ, bitsandbytes, …): how they are recognised, unpacked and loaded."""
