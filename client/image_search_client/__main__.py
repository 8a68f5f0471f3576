"""`python -m image_search_client` is `image-search`."""

import sys

from image_search_client.command import main

if __name__ == "__main__":
    sys.exit(main())
