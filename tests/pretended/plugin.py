"""``pytest -p tests.pretended.plugin``: tests with a pretended GPU in their process."""

from tests.pretended import device

device.load()
device.patch()
