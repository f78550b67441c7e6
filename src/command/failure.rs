//! Why a command was not done: the codes of the contract, and what a person is told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a command was not done. Contract: spelled as in DESIGN section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(
    missing_docs,
    reason = "the names are the contract; docs/PROTOCOL.md explains each"
)]
pub enum ErrorCode {
    AlreadyRunning,
    NotRunning,
    HookFailed,
    DependencyFailed,
    SpawnFailed,
    NotReady,
    Superseded,
    TooLarge,
    ShuttingDown,
    Internal,
    BadRequest,
    Unauthorized,
    Forbidden,
    ProtectedMode,
    ServerChanged,
    UnknownChild,
    InvalidConfig,
    Conflict,
    HookCycle,
    Unreachable,
    Timeout,
    Busy,
}

impl ErrorCode {
    /// Every code, in the order of their exit codes.
    pub const ALL: [Self; 22] = [
        Self::AlreadyRunning,
        Self::NotRunning,
        Self::HookFailed,
        Self::DependencyFailed,
        Self::SpawnFailed,
        Self::NotReady,
        Self::Superseded,
        Self::TooLarge,
        Self::ShuttingDown,
        Self::Internal,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::ProtectedMode,
        Self::ServerChanged,
        Self::UnknownChild,
        Self::InvalidConfig,
        Self::Conflict,
        Self::HookCycle,
        Self::Unreachable,
        Self::Timeout,
        Self::Busy,
    ];

    /// The code as it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AlreadyRunning => "already_running",
            Self::NotRunning => "not_running",
            Self::HookFailed => "hook_failed",
            Self::DependencyFailed => "dependency_failed",
            Self::SpawnFailed => "spawn_failed",
            Self::NotReady => "not_ready",
            Self::Superseded => "superseded",
            Self::TooLarge => "too_large",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::ProtectedMode => "protected_mode",
            Self::ServerChanged => "server_changed",
            Self::UnknownChild => "unknown_child",
            Self::InvalidConfig => "invalid_config",
            Self::Conflict => "conflict",
            Self::HookCycle => "hook_cycle",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
        }
    }

    /// The exit code of a client that met this error.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::AlreadyRunning
            | Self::NotRunning
            | Self::HookFailed
            | Self::DependencyFailed
            | Self::SpawnFailed
            | Self::NotReady
            | Self::Superseded
            | Self::TooLarge
            | Self::ShuttingDown
            | Self::Internal => 1,
            Self::BadRequest => 2,
            Self::Unauthorized | Self::Forbidden | Self::ProtectedMode | Self::ServerChanged => 4,
            Self::UnknownChild => 5,
            Self::InvalidConfig | Self::Conflict | Self::HookCycle => 6,
            Self::Unreachable | Self::Timeout | Self::Busy => 7,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: the `error` object of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which of the contract's codes.
    pub code: ErrorCode,
    /// What failed and why, for a person; may have several lines.
    pub message: String,
}

impl Failure {
    /// A refusal with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
