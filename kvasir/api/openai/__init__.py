"""OpenAI's wire formats, a file a family of endpoints, with what vLLM adds to them."""
