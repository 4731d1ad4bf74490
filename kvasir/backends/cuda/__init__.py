"""The plan's third interpreter: torch and Triton on a GPU (`pip install kvasir-llm[cuda]`).

Only this package imports torch or Triton, and nothing imports this package until a model is loaded on a GPU.
"""
