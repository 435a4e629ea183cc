"""Serve the other APIs, OpenAI's among them, without Cog's server; `container.apis` says how.

python -m scripts.api --weights small --port 8080
"""

from container.apis import main

if __name__ == "__main__":
    main()
