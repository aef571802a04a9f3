use crate::device::{c_string, Device};
use crate::error::{check, remember, Error, Result, Status};
use crate::operator_call::OperatorCall;
use crate::operators::{OperatorInfo, OperatorNeeds};
use kvc_sys as sys;
use std::any::Any;
use std::mem::{forget, size_of};
use std::os::raw::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// An attention operator of yours, which [`Device::operator_register`] adds to a device under a name.
///
/// It attends on the thread that calls [`Layers::attention`](crate::Layers::attention) or
/// [`Operator::forward`](crate::Operator::forward), of several caches on several threads at the same
/// time. An error that it returns is that of the call, with its status and its message. The cache is as
/// it was then, but what a put in the same call stored stays put, and outputs may have been written.
/// [`Status::DEVICE`] and [`Status::INTERNAL`] poison the cache. A panic is caught and becomes INTERNAL.
///
/// ```
/// use kvc::*;
///
/// /// The mean of the values that a token sees.
/// struct Mean;
///
/// impl AttentionOperator for Mean {
///     fn forward_native(&self, call: &mut OperatorCall<'_>) -> Result<()> {
///         let other_type = || Error::new(Status::DTYPE, "mean takes values and outputs of F32");
///         let mut sees = vec![false; call.n_tokens * call.columns];
///         call.call_mask(TensorMut::bool(&mut sees, &[call.n_tokens, call.columns])?)?;
///         let group = call.n_q_heads / call.n_kv_heads;
///         for token in 0..call.n_tokens {
///             let sees = &sees[token * call.columns..][..call.columns];
///             let columns: Vec<usize> = (0..call.columns).filter(|&c| sees[c]).collect();
///             for head in 0..call.n_q_heads {
///                 let out = call.out.f32(token, head).ok_or_else(other_type)?;
///                 out.fill(0.0);
///             }
///             for (&column, head) in columns.iter().flat_map(|c| (0..call.n_q_heads).map(move |h| (c, h))) {
///                 let cell = call.cell(token, column);
///                 let values = call.v.codes.f32(cell, head / group).ok_or_else(other_type)?;
///                 let out = call.out.f32(token, head).ok_or_else(other_type)?;
///                 out.iter_mut().zip(values).for_each(|(o, v)| *o += v / columns.len() as f32);
///             }
///         }
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let device = Device::open("cpu", 0)?;
/// let info = OperatorInfo {
///     modes: Modes::ALL,
///     features: Features::GROUPED | Features::MASK | Features::WINDOW,
///     ..Default::default()
/// };
/// device.operator_register("mean,average", &info, Mean)?;
/// let mean = Operator::new(&device, "average", &OperatorDesc::default())?;
///
/// # let desc = CacheDesc {
/// #     n_layers: 1, n_kv_heads: 2, head_dim_k: 8, capacity: 64, max_batch: 8, ..Default::default()
/// # };
/// let mut cache = Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default()))?;
/// cache.bind_operator(0, 1, Modes::ALL, Some(&mean))?;
/// let v: Vec<f32> = (0..2 * 16).map(|i| (i / 16) as f32).collect(); // 0 and 1
/// let (q, mut out) = ([0.5; 2 * 32], [9.0; 2 * 32]);
/// let mut pass = cache.begin(&[0, 1], &[0, 0])?;
/// let v = Tensor::f32(&v, &[2, 2, 8])?;
/// pass.put_attention(0, v, v, Tensor::f32(&q, &[2, 4, 8])?, TensorMut::f32(&mut out, &[2, 4, 8])?)?;
/// pass.commit()?;
/// assert_eq!((out[0], out[32]), (0.0, 0.5));
/// # Ok(())
/// # }
/// ```
pub trait AttentionOperator: Send + Sync {
    /// Attends: writes `out` of the call, and `lse` and `weights` where they are wanted. On every device
    /// that has no function of its own.
    fn forward_native(&self, call: &mut OperatorCall<'_>) -> Result<()>;

    /// Attends on the CPU.
    fn forward_cpu(&self, call: &mut OperatorCall<'_>) -> Result<()> {
        self.forward_native(call)
    }

    /// Attends on a CUDA device, whose memory the views of a call lend by address alone.
    fn forward_cuda(&self, call: &mut OperatorCall<'_>) -> Result<()> {
        self.forward_native(call)
    }

    /// Returns an error (NOT_SUPPORTED) if it cannot do what is needed, in addition to what its
    /// [`OperatorInfo`] says, which was compared before. Asked by [`Device::operator_supports`] and
    /// [`Cache::bind_operator`](crate::Cache::bind_operator).
    fn supports(&self, _needs: &OperatorNeeds) -> Result<()> {
        Ok(())
    }
}

impl Device {
    /// Adds an operator of yours to the device's registry. `names`: "mine", or "mine,alias,another": 1 to
    /// 31 of a-z, 0-9, `_` and `-` each. `info` says what it has. Keys that owe a rotation are rotated
    /// before the operator sees them, unless it has [`Features::SHIFTED`](crate::Features::SHIFTED).
    ///
    /// The operator is dropped when neither the registry nor an [`Operator`](crate::Operator) nor a layer
    /// holds it, within the call that lets go of it last, and if this call fails. A name that is taken
    /// is INVALID_ARGUMENT: see [`Device::operator_replace`].
    pub fn operator_register<T: AttentionOperator + 'static>(
        &self,
        names: &str,
        info: &OperatorInfo,
        op: T,
    ) -> Result<()> {
        self.add_operator(names, 0, info, op)
    }

    /// [`Device::operator_register`] that gives names which are taken to the new operator. Layers and
    /// operators that exist keep what they have.
    pub fn operator_replace<T: AttentionOperator + 'static>(
        &self,
        names: &str,
        info: &OperatorInfo,
        op: T,
    ) -> Result<()> {
        self.add_operator(names, sys::KVC_OPERATOR_REPLACE, info, op)
    }

    fn add_operator<T: AttentionOperator + 'static>(
        &self,
        names: &str,
        flags: u32,
        info: &OperatorInfo,
        op: T,
    ) -> Result<()> {
        let names = c_string("names", names)?;
        let functions = sys::kvc_operator_functions {
            struct_size: size_of::<sys::kvc_operator_functions>() as u32,
            reserved: 0,
            supports: Some(supports::<T>),
            forward_native: Some(forward_native::<T>),
            forward_cpu: Some(forward_cpu::<T>),
            forward_cuda: Some(forward_cuda::<T>),
            release: Some(release::<T>),
        };
        let user = Box::into_raw(Box::new(op));
        let (handle, names, info) = (self.handle, names.as_ptr(), info.raw());
        let added = check(unsafe {
            sys::kvc_operator_register(handle, names, flags, &info, &functions, user as *mut c_void)
        });
        if added.is_err() {
            drop(unsafe { Box::from_raw(user) }); // which the library did not take
        }
        added
    }
}

// ---- What the library calls ----------------------------------------------------------------------
//
// `user` is the T of add_operator(), which lives until release(). Nothing unwinds into the library.

unsafe extern "C" fn forward_native<T: AttentionOperator>(
    user: *mut c_void,
    call: *const sys::kvc_operator_call,
) -> sys::kvc_status {
    answer(|| (*(user as *const T)).forward_native(&mut OperatorCall::new(&*call)))
}

unsafe extern "C" fn forward_cpu<T: AttentionOperator>(
    user: *mut c_void,
    call: *const sys::kvc_operator_call,
) -> sys::kvc_status {
    answer(|| (*(user as *const T)).forward_cpu(&mut OperatorCall::new(&*call)))
}

unsafe extern "C" fn forward_cuda<T: AttentionOperator>(
    user: *mut c_void,
    call: *const sys::kvc_operator_call,
) -> sys::kvc_status {
    answer(|| (*(user as *const T)).forward_cuda(&mut OperatorCall::new(&*call)))
}

unsafe extern "C" fn supports<T: AttentionOperator>(
    user: *mut c_void,
    needs: *const sys::kvc_operator_needs,
) -> sys::kvc_status {
    answer(|| (*(user as *const T)).supports(&OperatorNeeds::from_raw(&*needs)))
}

unsafe extern "C" fn release<T: AttentionOperator>(user: *mut c_void) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(user as *mut T)))) {
        end(panic);
    }
}

/// Turns what an operator returns into a status, and keeps its message for the call that it is in.
fn answer(body: impl FnOnce() -> Result<()>) -> sys::kvc_status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return sys::KVC_OK,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("it panicked: {}", text.unwrap_or("without a message"));
            end(panic);
            Error::new(Status::INTERNAL, message)
        }
    };
    let status = match error.status.0 {
        sys::KVC_OK => sys::KVC_E_INVALID_ARGUMENT, // no status of an error
        status => status,
    };
    remember(error.message);
    status
}

/// Drops what a panic carried, which may panic again.
fn end(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        forget(again);
    }
}
