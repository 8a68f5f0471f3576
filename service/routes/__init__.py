"""The operations, by what they are about; all but those of the operator are admitted."""
