use crate::error::{check, Error, Result, Status};
use kvc_sys as sys;
use std::ffi::CString;
use std::fmt;
use std::mem::size_of;
use std::ptr;

/// Where memory is and how many threads work. A cache keeps what it needs of its device, so the
/// device may be dropped first.
#[must_use = "a device that is dropped is closed"]
pub struct Device {
    pub(crate) handle: *mut sys::kvc_device,
}

// kvc/device.h: "Threads: any." The handle is a key of a table that has a lock of its own.
unsafe impl Send for Device {}
unsafe impl Sync for Device {}

impl Device {
    /// Opens a device and starts its threads.
    ///
    /// `name`: "cpu", or "cuda:0" and so on for a GPU. `n_threads`: threads that share the work of one attention call, the caller's
    /// included; 0: as many as the process may use. Returns VERSION if the loaded library has
    /// another minor version than the one that this crate declares.
    pub fn open(name: &str, n_threads: i32) -> Result<Device> {
        unsafe { Device::open_with(name, n_threads, None) }
    }

    /// open() of a GPU whose memory comes from `device_allocator`, if it is given. Returns NOT_SUPPORTED
    /// for the CPU.
    ///
    /// # Safety
    ///
    /// The functions of the allocator do what kvc/device.h asks of `device_allocator`, for as long as the
    /// device or a cache on it lives.
    pub unsafe fn open_with(
        name: &str,
        n_threads: i32,
        device_allocator: Option<&sys::kvc_allocator>,
    ) -> Result<Device> {
        compatible(crate::version_number())?;
        let name = c_string("name", name)?;
        let desc = sys::kvc_device_desc {
            struct_size: size_of::<sys::kvc_device_desc>() as u32,
            n_threads,
            flags: 0,
            device_allocator: device_allocator.map_or(ptr::null(), |memory| memory),
        };
        let mut handle = ptr::null_mut();
        check(sys::kvc_device_open(
            name.as_ptr(),
            &desc,
            ptr::null(),
            &mut handle,
        ))?;
        Ok(Device { handle })
    }

    /// Waits until the device has done everything that it was given so far. Returns DEVICE if a GPU
    /// has failed. On the CPU it returns at once.
    pub fn synchronize(&self) -> Result<()> {
        check(unsafe { sys::kvc_device_synchronize(self.handle) })
    }
}

/// Returns a text for C, which ends at the first zero byte.
pub(crate) fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        let message = format!("{what} {text:?} contains a zero byte");
        Error::new(Status::INVALID_ARGUMENT, message)
    })
}

/// Structs and functions of another minor version may differ from what kvc-sys declares.
fn compatible(library: u32) -> Result<()> {
    let (declared, text) = (sys::KVC_VERSION_NUMBER, |v: u32| {
        format!("{}.{}", v >> 16, v >> 8 & 0xff)
    });
    if library >> 8 == declared >> 8 {
        return Ok(());
    }
    let message = format!(
        "this program was compiled for kvc {0} and has loaded kvc {1}: put libkvc of {0} first in \
         LD_LIBRARY_PATH, or take the crates of {1}",
        text(declared),
        text(library)
    );
    Err(Error::new(Status::VERSION, message))
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        unsafe { sys::kvc_device_close(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_minor_versions_are_refused() {
        let version = sys::KVC_VERSION_NUMBER;
        let patch = version + 1; // changes no struct
        assert!(compatible(version).is_ok() && compatible(patch).is_ok());
        for library in [version + 0x100, version + 0x10000, 12 << 16 | 34 << 8] {
            assert_eq!(compatible(library).unwrap_err().status, Status::VERSION);
        }
        let message = compatible(12 << 16 | 34 << 8).unwrap_err().message;
        assert!(message.contains("loaded kvc 12.34"), "{message}");
        assert!(message.contains("compiled for kvc 0.2"), "{message}");
    }
}
