"""Run the container's server on this machine, without Docker; `container.server` says how.

python -m scripts.server --weights small --port 5000
"""

from container.server import main

if __name__ == "__main__":
    main()
