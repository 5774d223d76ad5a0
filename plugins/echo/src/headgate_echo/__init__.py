"""The echo backend: the tutorial plugin and the model that tests can predict."""
