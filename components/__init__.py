"""Plain torch, transformers and diffusers parts; nothing here imports lightning."""
