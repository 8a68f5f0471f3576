"""What runs VGG16: each engine turns uint8 RGB [n, size, size, 3] into float32 [n, features].

The features are feature maps, pooled as each `Pooling` says, in its order.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Mean of ImageNet's training images, red, green and blue, which VGG16's authors subtract:
# https://www.robots.ox.ac.uk/~vgg/research/very_deep/
MEAN_RGB: Final = (123.68, 116.779, 103.939)
