from transformers import LagunaForCausalLM as _LagunaForCausalLM


class LagunaForCausalLM(_LagunaForCausalLM):
    pass
