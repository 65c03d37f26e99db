"""SentencePiece models: load them, encode fast, convert them for Hugging Face."""
