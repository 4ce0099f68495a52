"""What can go wrong at the service's doors. Each carries one sentence for the person who asked."""


class ServiceError(Exception):
    """A known failure of the service; the text is one sentence that says what to do."""


class JobNotFound(ServiceError, LookupError):
    """There is no such job, or it belongs to someone else."""


class MediaNotFound(ServiceError, LookupError):
    """There is no such picture, or it belongs to someone else."""


class IdempotencyConflict(ServiceError, ValueError):
    """An idempotency key was used before with another request."""


class BrokerUnavailable(ServiceError, ConnectionError):
    """The broker cannot be reached, or its address cannot be used."""


class DatabaseUnavailable(ServiceError, ConnectionError):
    """The job table cannot be reached, or its address cannot be used."""


class SettingsError(ServiceError, ValueError):
    """A MEZZOTINT_* setting cannot be used as given."""
