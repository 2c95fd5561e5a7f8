from transformers import LagunaConfig as _LagunaConfig


class LagunaConfig(_LagunaConfig):
    pass
