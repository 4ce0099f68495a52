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


class TokenNotFound(ServiceError, LookupError):
    """There is no such token."""


class TokenInvalid(ServiceError, ValueError):
    """A token cannot be made as asked."""


class NotRetryable(ServiceError, ValueError):
    """A job that succeeded, or that has still to end, is not tried again."""


class NoRoom(ServiceError):
    """A job is not taken for now: the queue is full, or its owner has used up what a token allows.

    retry_after_s: when it may be worth trying again, in seconds.
    """

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s
