"""Serve OpenAI's, Gemini's, TEI's, Ollama's and Cohere's APIs without Cog's server; `container.apis` says how.

python -m scripts.api --weights small --port 8080
"""

from container.apis import main

if __name__ == "__main__":
    main()
