"""The Dynamo tab of TensorBoard."""
