"""Draft heads: small networks that read a target's hidden states, as they come with models or in folders of their own."""
