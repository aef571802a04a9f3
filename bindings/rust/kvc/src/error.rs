use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_char;

/// The status of a failed call. A number and not an enum: a later library may return one of its
/// own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub i32);

macro_rules! statuses {
    ($($name:ident = $value:ident, $what:literal;)*) => {
        impl Status {
            $(#[doc = $what] pub const $name: Status = Status(kvc_sys::$value);)*
        }
    };
}

statuses! {
    INVALID_ARGUMENT = KVC_E_INVALID_ARGUMENT, "A number out of bounds.";
    HANDLE = KVC_E_HANDLE, "The cache of a `Watcher` was dropped, or the handle was made before a fork.";
    OUT_OF_MEMORY = KVC_E_OUT_OF_MEMORY, "The system or the handle table is exhausted.";
    NOT_SUPPORTED = KVC_E_NOT_SUPPORTED, "Well formed, but this cache cannot do it.";
    BAD_STATE = KVC_E_BAD_STATE, "A layer was not put, or constants were bound too late.";
    BUSY = KVC_E_BUSY, "Another thread is inside a call that excludes this one.";
    SHAPE = KVC_E_SHAPE, "A wrong number of dimensions or extent, or a slice of another length.";
    DTYPE = KVC_E_DTYPE, "An element type that this argument does not take.";
    OVERFLOW = KVC_E_OVERFLOW, "A product of sizes does not fit.";
    VERSION = KVC_E_VERSION, "The library is of another minor version than this crate.";
    CACHE_FULL = KVC_E_CACHE_FULL,
        "Fewer free cells than tokens, or more positions than a sequence may hold.";
    WINDOW_LOST = KVC_E_WINDOW_LOST, "Tokens that the continuation needs have slid out.";
    NOT_FOUND = KVC_E_NOT_FOUND, "There is no such thing.";
    INVALID_RECURRENT_SHAPE = KVC_E_INVALID_RECURRENT_SHAPE, "Not the dimensions of a state.";
    DEVICE = KVC_E_DEVICE, "The device failed; the cache is poisoned.";
    DEVICE_MISMATCH = KVC_E_DEVICE_MISMATCH, "A tensor is on another device than the cache.";
    BACKEND_UNAVAILABLE = KVC_E_BACKEND_UNAVAILABLE, "This machine has no such device.";
    IO = KVC_E_IO, "Reading or writing failed.";
    CORRUPT = KVC_E_CORRUPT, "Stored data is damaged.";
    INTERNAL = KVC_E_INTERNAL, "A bug inside kvc; the cache is poisoned.";
}

impl Status {
    /// Returns the name without its prefix, for example "CACHE_FULL", or "UNKNOWN".
    pub fn name(self) -> &'static str {
        // The library never returns null, and the text is static ASCII.
        unsafe { CStr::from_ptr(kvc_sys::kvc_status_name(self.0)) }
            .to_str()
            .unwrap_or("UNKNOWN")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What every failing call returns: the status for the program and the message for people. A call
/// that fails has changed nothing (`DEVICE` and `INTERNAL` excepted).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub status: Status,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For what an [`AttentionOperator`](crate::AttentionOperator) returns.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        let message = message.into();
        Error { status, message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for Error {}

/// Turns the status of a call that this thread has just made into a Result.
pub(crate) fn check(status: kvc_sys::kvc_status) -> Result<()> {
    if status == kvc_sys::KVC_OK {
        return Ok(());
    }
    let mut text = [0u8; 512];
    let length =
        unsafe { kvc_sys::kvc_last_error_copy(text.as_mut_ptr() as *mut c_char, text.len()) };
    let mut message = String::from_utf8_lossy(&text[..length.min(text.len() - 1)]).into_owned();
    if message.contains(RETURNED) {
        let of_operator = OF_OPERATOR.try_with(Cell::take).unwrap_or_default();
        if !of_operator.is_empty() {
            message = format!("{message}: {of_operator}");
        }
    }
    Err(Error::new(Status(status), message))
}

/// What the library says of a status that the operator of a caller returned, just now on this thread.
const RETURNED: &str = "(kvc_operator_register) returned ";

thread_local! {
    /// What that operator said.
    static OF_OPERATOR: Cell<String> = const { Cell::new(String::new()) };
}

/// Keeps the message of an operator until the call that it is in returns.
pub(crate) fn remember(message: String) {
    // Nothing is kept of a thread that ends.
    let _ = OF_OPERATOR.try_with(|slot| slot.set(message));
}
