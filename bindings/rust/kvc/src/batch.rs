use crate::error::{Error, Result, Status};
use kvc_sys as sys;
use std::os::raw::c_void;
use std::ptr;

/// The sequence of a padding token: the token belongs to no sequence and takes no cell, its rows of
/// K, V and q are not read, and its output is 0.
pub const PADDING: i32 = sys::KVC_NONE;

/// A flag of a token, for [`begin_with`](crate::Cache::begin_with): the token also sees later tokens
/// of its sequence.
pub const TOKEN_SEES_LATER: u32 = sys::KVC_TOKEN_SEES_LATER;

/// A flag of a token, for [`begin_with`](crate::Cache::begin_with) of an encoder cache: the token
/// carries a new input of its sequence. It and all later tokens see the whole of it, until another
/// one carries the next.
pub const TOKEN_ENCODER_INPUT: u32 = sys::KVC_TOKEN_ENCODER_INPUT;

/// A flag of a token, for [`begin_with`](crate::Cache::begin_with) of a lightning cache: the token adds
/// nothing to the state while time passes. It has an output, and its rows of K and V are not read.
pub const TOKEN_MASKED: u32 = sys::KVC_TOKEN_MASKED;

/// Flags of a token of a type, for [`begin_with`](crate::Cache::begin_with); 0 is no type. Tokens of
/// one sequence that have the same type in a pass see each other, later ones and ones outside the
/// window too: an image sees itself whole. They must be consecutive tokens of their sequence, so
/// each image of a pass has a type of its own.
pub const fn token_type(number: u16) -> u32 {
    (number as u32) << sys::KVC_TOKEN_TYPE_SHIFT
}

/// What [`Cache::begin_on`](crate::Cache::begin_on) takes beside the tokens.
#[derive(Clone, Copy, Debug)]
pub struct BeginOptions<'a> {
    /// As those of [`begin_with`](crate::Cache::begin_with).
    pub token_flags: Option<&'a [u32]>,
    /// A stream of the GPU in DLPack's numbering; null: the legacy default stream.
    pub stream: *mut c_void,
    /// Whether a captured graph does the pass: KVC_BEGIN_REPLAY.
    pub replay: bool,
}

impl Default for BeginOptions<'_> {
    fn default() -> Self {
        BeginOptions {
            token_flags: None,
            stream: ptr::null_mut(),
            replay: false,
        }
    }
}

/// Narrows a length for C.
pub(crate) fn count(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        let message = format!(
            "{what}: a call takes at most {} elements, not {n}",
            i32::MAX
        );
        Error::new(Status::INVALID_ARGUMENT, message)
    })
}

/// Returns the length of two slices that belong together.
pub(crate) fn same_length(what: &str, a: usize, b: usize) -> Result<i32> {
    if a != b {
        let message = format!("{what} have {a} and {b} elements");
        return Err(Error::new(Status::INVALID_ARGUMENT, message));
    }
    count(what, a)
}

/// The tokens of a pass: slices that have the same length.
pub(crate) struct Batch<'a> {
    pub(crate) n: i32,
    positions: &'a [i32],
    sequences: &'a [i32],
    token_flags: Option<&'a [u32]>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        positions: &'a [i32],
        sequences: &'a [i32],
        token_flags: Option<&'a [u32]>,
    ) -> Result<Batch<'a>> {
        let n = same_length("positions and sequences", positions.len(), sequences.len())?;
        if let Some(flags) = token_flags {
            same_length("positions and token_flags", positions.len(), flags.len())?;
        }
        Ok(Batch {
            n,
            positions,
            sequences,
            token_flags,
        })
    }

    pub(crate) fn pointers(&self) -> (*const i32, *const i32, *const u32) {
        let flags = self.token_flags.map_or(ptr::null(), <[u32]>::as_ptr);
        (self.positions.as_ptr(), self.sequences.as_ptr(), flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_c_cannot_count_is_refused_with_its_value() {
        let most = i32::MAX as usize;
        assert_eq!(count("except", most), Ok(i32::MAX));
        for n in [most + 1, 1 << 40, usize::MAX] {
            let error = count("except", n).unwrap_err();
            assert_eq!(error.status, Status::INVALID_ARGUMENT);
            assert!(error.message.contains("except"), "{error}");
            assert!(error.message.contains(&n.to_string()), "{error}");
            assert_eq!(
                same_length("a and b", n, n).unwrap_err().status,
                error.status
            );
        }
    }
}
