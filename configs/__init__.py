"""The configurations that come with kfcnet, one YAML file per curve."""
