"""dynx: local AI inference that spends less on easy inputs, with a stated and tested promise."""

__version__ = "0.1.0.dev0"
