//! What a failed call means for its caller, and the time limit every call runs under. Called by whoever holds a client.

use std::time::Duration;

use zookeeper_client::{Error, MultiWriteError};

/// `KeeperException.Code.EPHEMERALONLOCALSESSION`, which the client does not know.
const EPHEMERAL_ON_LOCAL_SESSION: i32 = -120;

/// What a failed call means for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The session or the client is gone: leave it to the supervisor, wait for the next live link.
    Terminal,
    /// The outcome is unknown: the call may have been carried out, or may be later. Look, then decide again.
    Lost,
    /// Nothing done: the node (or the parent of a node to create) does not exist.
    NoNode,
    /// Nothing done: the node exists.
    NodeExists,
    /// Nothing done: the node has children.
    NotEmpty,
    /// Nothing done: the node has another version.
    BadVersion,
    /// Nothing done: the ACL forbids it.
    NoAuth,
    /// Nothing done: the session is known to one member alone, and may have no ephemeral nodes.
    LocalSession,
    /// Nothing done: the server does not know the operation, or one in the transaction.
    TooOld,
    /// Nothing done, for a reason that is none of the above (quota, throttling, arguments).
    Refused,
}

impl From<&Error> for Trouble {
    /// Only errors that are known to leave the data alone are definite. Everything else counts as lost, since a broken
    /// connection shows as `ConnectionLoss`, but also as `Custom` (socket error, idle time-out) and others.
    fn from(error: &Error) -> Self {
        match error {
            Error::SessionExpired | Error::ClientClosed | Error::AuthFailed => Self::Terminal,
            Error::NoNode => Self::NoNode,
            Error::NodeExists => Self::NodeExists,
            Error::NotEmpty => Self::NotEmpty,
            Error::BadVersion => Self::BadVersion,
            Error::NoAuth => Self::NoAuth,
            Error::MarshallingError | Error::Unimplemented => Self::TooOld,
            Error::UnexpectedErrorCode(EPHEMERAL_ON_LOCAL_SESSION) => Self::LocalSession,
            Error::BadArguments(_)
            | Error::NoChildrenForEphemerals
            | Error::InvalidAcl
            | Error::NotReadOnly
            | Error::NoWatcher
            | Error::QuotaExceeded
            | Error::Throttled
            | Error::ReconfigDisabled
            | Error::RuntimeInconsistent
            | Error::UnexpectedErrorCode(_) => Self::Refused,
            _ => Self::Lost,
        }
    }
}

impl From<&MultiWriteError> for Trouble {
    fn from(error: &MultiWriteError) -> Self {
        match error {
            MultiWriteError::RequestFailed { source }
            | MultiWriteError::OperationFailed { source, .. } => source.into(),
        }
    }
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E: std::error::Error + 'static = Error> {
    /// No reply in time. The request was sent: it may have been carried out, or may be later.
    #[error("no reply within {0:?}, the outcome is unknown")]
    TimedOut(Duration),
    /// The client's own error.
    #[error(transparent)]
    Failed(E),
}

impl<E: std::error::Error + 'static> CallError<E>
where
    for<'a> Trouble: From<&'a E>,
{
    /// What it means for the caller.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::TimedOut(_) => Trouble::Lost,
            Self::Failed(error) => error.into(),
        }
    }
}

/// Runs one call of the client under a time limit.
///
/// Neither the limit nor dropping this future takes a request back: it was sent when the client's method was called.
///
/// # Errors
/// No reply in time, or the client's error.
pub async fn call<T, E: std::error::Error + 'static>(
    limit: Duration,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, CallError<E>> {
    match tokio::time::timeout(limit, request).await {
        Ok(result) => result.map_err(CallError::Failed),
        Err(_) => Err(CallError::TimedOut(limit)),
    }
}
