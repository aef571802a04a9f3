use crate::bit_sets::{DTypes, Devices, Features, Modes};
use crate::cache::Cache;
use crate::device::{c_string, Device};
use crate::error::{check, Result, Status};
use crate::tensor::DType;
use kvc_sys as sys;
use std::fmt;
use std::mem::size_of;
use std::os::raw::c_char;
use std::ptr;

/// An operator of a device's registry: [`Device::operators`], and what
/// [`Device::operator_register`] is told of a new one. See `kvc_operator_info`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorInfo {
    /// Where it runs; empty, for a new one: on the device that it is registered with.
    pub devices: Devices,
    pub modes: Modes,
    pub features: Features,
    /// Storage types of K and V in a cache; empty, for a new one, here and below: F32.
    pub storage: DTypes,
    /// Types that [`OperatorDesc::runtime_dtype`] may name.
    pub runtime_dtypes: DTypes,
    /// Types that [`OperatorDesc::softmax_dtype`] may name.
    pub softmax_dtypes: DTypes,
    /// 0, here and below: any.
    pub head_dim_min: i32,
    pub head_dim_max: i32,
    pub head_dim_multiple: i32,
    /// What is asked for is rounded up to a multiple.
    pub block_q_multiple: i32,
    pub block_k_multiple: i32,
    /// That was asked for or listed. Not read of a new one.
    pub name: String,
    /// The first name of the operator, the same for all of its aliases. Not read of a new one.
    pub canonical: String,
}

impl OperatorInfo {
    pub(crate) fn raw(&self) -> sys::kvc_operator_info {
        sys::kvc_operator_info {
            struct_size: size_of::<sys::kvc_operator_info>() as u32,
            devices: self.devices.0,
            modes: self.modes.0,
            features: self.features.0,
            storage: self.storage.0,
            runtime_dtypes: self.runtime_dtypes.0,
            softmax_dtypes: self.softmax_dtypes.0,
            head_dim_min: self.head_dim_min,
            head_dim_max: self.head_dim_max,
            head_dim_multiple: self.head_dim_multiple,
            block_q_multiple: self.block_q_multiple,
            block_k_multiple: self.block_k_multiple,
            name: [0; 32],
            canonical: [0; 32],
        }
    }

    /// Returns what `call` fills in.
    fn filled_in(
        call: impl FnOnce(*mut sys::kvc_operator_info) -> sys::kvc_status,
    ) -> Result<OperatorInfo> {
        let mut raw = OperatorInfo::default().raw();
        check(call(&mut raw))?;
        Ok(OperatorInfo {
            devices: Devices(raw.devices),
            modes: Modes(raw.modes),
            features: Features(raw.features),
            storage: DTypes(raw.storage),
            runtime_dtypes: DTypes(raw.runtime_dtypes),
            softmax_dtypes: DTypes(raw.softmax_dtypes),
            head_dim_min: raw.head_dim_min,
            head_dim_max: raw.head_dim_max,
            head_dim_multiple: raw.head_dim_multiple,
            block_q_multiple: raw.block_q_multiple,
            block_k_multiple: raw.block_k_multiple,
            name: text(&raw.name),
            canonical: text(&raw.canonical),
        })
    }
}

fn text(chars: &[c_char]) -> String {
    let bytes = chars.iter().map(|&c| c as u8).take_while(|&byte| byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// What attention is wanted for: [`Device::operator_supports`]. 0 in a number: any. See
/// `kvc_operator_needs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorNeeds {
    /// One mode.
    pub mode: Modes,
    /// [`Features::GROUPED`] and [`Features::DIMS_DIFFER`] follow from the numbers below, too.
    pub features: Features,
    /// Storage type of K; the default: F32.
    pub dtype_k: DType,
    pub dtype_v: DType,
    pub n_q_heads: i32,
    pub n_kv_heads: i32,
    pub head_dim_k: i32,
    pub head_dim_v: i32,
    /// The default: F32.
    pub runtime_dtype: DType,
    pub softmax_dtype: DType,
}

impl OperatorNeeds {
    fn raw(&self) -> sys::kvc_operator_needs {
        sys::kvc_operator_needs {
            struct_size: size_of::<sys::kvc_operator_needs>() as u32,
            mode: self.mode.0,
            features: self.features.0,
            dtype_k: self.dtype_k.0,
            dtype_v: self.dtype_v.0,
            n_q_heads: self.n_q_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim_k: self.head_dim_k,
            head_dim_v: self.head_dim_v,
            runtime_dtype: self.runtime_dtype.0,
            softmax_dtype: self.softmax_dtype.0,
        }
    }

    pub(crate) fn from_raw(raw: &sys::kvc_operator_needs) -> OperatorNeeds {
        OperatorNeeds {
            mode: Modes(raw.mode),
            features: Features(raw.features),
            dtype_k: DType(raw.dtype_k),
            dtype_v: DType(raw.dtype_v),
            n_q_heads: raw.n_q_heads,
            n_kv_heads: raw.n_kv_heads,
            head_dim_k: raw.head_dim_k,
            head_dim_v: raw.head_dim_v,
            runtime_dtype: DType(raw.runtime_dtype),
            softmax_dtype: DType(raw.softmax_dtype),
        }
    }
}

impl Device {
    /// Lists the names of the device's registry, in order of registration: an alias follows its
    /// operator.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// let device = Device::open("cpu", 0)?;
    /// let operators = device.operators()?;
    /// let sdpa = operators.iter().find(|info| info.name == "sdpa").unwrap();
    /// assert_eq!(sdpa.canonical, "flash");
    /// assert!(sdpa.features.contains(Features::MASK | Features::BIAS));
    ///
    /// let needs = OperatorNeeds {
    ///     mode: Modes::TRAIN, features: Features::DROPOUT, ..Default::default()
    /// };
    /// let refused = device.operator_supports(Some("sdpa"), &needs).unwrap_err();
    /// assert_eq!(refused.status, Status::NOT_SUPPORTED); // the message says why
    /// assert_eq!(device.operator_supports(None, &needs)?, "vanilla");
    /// # Ok(())
    /// # }
    /// ```
    pub fn operators(&self) -> Result<Vec<OperatorInfo>> {
        let mut found = Vec::new();
        for i in 0.. {
            match OperatorInfo::filled_in(|out| unsafe {
                sys::kvc_operator_at(self.handle, i, out)
            }) {
                Ok(info) => found.push(info),
                Err(error) if error.status == Status::NOT_FOUND => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Describes the operator that a name stands for. NOT_FOUND: the message lists the names.
    pub fn operator_find(&self, name: &str) -> Result<OperatorInfo> {
        let name = c_string("name", name)?;
        OperatorInfo::filled_in(|out| unsafe {
            sys::kvc_operator_find(self.handle, name.as_ptr(), out)
        })
    }

    /// Returns the operator that can do what is needed: the one that `name` stands for; `None`: the
    /// first built-in one that can. NOT_SUPPORTED: the message names the first thing that it lacks.
    pub fn operator_supports(&self, name: Option<&str>, needs: &OperatorNeeds) -> Result<String> {
        let name = name.map(|name| c_string("name", name)).transpose()?;
        let name = name.as_ref().map_or(ptr::null(), |name| name.as_ptr());
        let (needs, mut chosen) = (needs.raw(), [0; 32]);
        let into = chosen.as_mut_ptr();
        check(unsafe { sys::kvc_operator_supports(self.handle, name, &needs, into) })?;
        Ok(text(&chosen))
    }

    /// Takes a caller's operator away, with all of its names; those of a built-in operator name that one
    /// again. Layers and operators that have it keep it. NOT_SUPPORTED: it is built in.
    pub fn operator_unregister(&self, name: &str) -> Result<()> {
        let name = c_string("name", name)?;
        check(unsafe { sys::kvc_operator_unregister(self.handle, name.as_ptr()) })
    }
}

/// The settings of an operator. Everything 0 is the default. See `kvc_operator_desc`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperatorDesc {
    /// `stretches` side by side, on several threads, instead of one after the other; the same bits.
    pub no_scan: bool,
    /// The least exact type that queries, keys, values and weights may be rounded to: F32 (the default),
    /// F16 or BF16. A floor: `flash`, `decode` and `ring` round where many rows meet the same keys and
    /// the processor has AMX, which is faster; everything else is as exact as in F32.
    pub runtime_dtype: DType,
    /// Likewise for scores, exponentials and sums. F64 (`vanilla`) computes all of them in double.
    pub softmax_dtype: DType,
    /// 0: that of the layer. A layer to which [`Cache::bind_attention`] bound constants must have the
    /// same one.
    pub softmax_scale: f32,
    /// 0 or more, below 1: of calls with dropout.
    pub dropout_prob: f32,
    /// Query rows (tokens times query heads of a KV head) that read the keys together, at most.
    pub block_q: i32,
    /// Keys that are read at a time, at most.
    pub block_k: i32,
    /// No built-in operator has it.
    pub block_b: i32,
    /// `ring`: parts that the keys of a row are cut into; 0: one for each thread of the device.
    pub stretches: i32,
    /// The bounds of [`Operator::forward`]. All 0: the operator is only bound to caches.
    pub max_rows: i32,
    pub max_q_len: i32,
    pub max_kv_len: i32,
    pub n_kv_heads: i32,
    /// 0: n_kv_heads
    pub max_q_heads: i32,
    pub head_dim_k: i32,
    /// 0: head_dim_k
    pub head_dim_v: i32,
}

impl OperatorDesc {
    /// Returns the settings with each one that is 0 filled in: from `base`, and F32 for the two types.
    pub fn resolve(&self, base: Option<&OperatorDesc>) -> Result<OperatorDesc> {
        let (mut raw, base) = (self.raw(), base.map(OperatorDesc::raw));
        let base = base.as_ref().map_or(ptr::null(), |base| base as *const _);
        check(unsafe { sys::kvc_operator_resolve(base, &mut raw) })?;
        Ok(OperatorDesc::from_raw(&raw))
    }

    fn raw(&self) -> sys::kvc_operator_desc {
        sys::kvc_operator_desc {
            struct_size: size_of::<sys::kvc_operator_desc>() as u32,
            flags: if self.no_scan {
                sys::KVC_OPERATOR_NO_SCAN
            } else {
                0
            },
            runtime_dtype: self.runtime_dtype.0,
            softmax_dtype: self.softmax_dtype.0,
            softmax_scale: self.softmax_scale,
            dropout_prob: self.dropout_prob,
            block_q: self.block_q,
            block_k: self.block_k,
            block_b: self.block_b,
            stretches: self.stretches,
            max_rows: self.max_rows,
            max_q_len: self.max_q_len,
            max_kv_len: self.max_kv_len,
            n_kv_heads: self.n_kv_heads,
            max_q_heads: self.max_q_heads,
            head_dim_k: self.head_dim_k,
            head_dim_v: self.head_dim_v,
        }
    }

    fn from_raw(raw: &sys::kvc_operator_desc) -> OperatorDesc {
        OperatorDesc {
            no_scan: raw.flags & sys::KVC_OPERATOR_NO_SCAN != 0,
            runtime_dtype: DType(raw.runtime_dtype),
            softmax_dtype: DType(raw.softmax_dtype),
            softmax_scale: raw.softmax_scale,
            dropout_prob: raw.dropout_prob,
            block_q: raw.block_q,
            block_k: raw.block_k,
            block_b: raw.block_b,
            stretches: raw.stretches,
            max_rows: raw.max_rows,
            max_q_len: raw.max_q_len,
            max_kv_len: raw.max_kv_len,
            n_kv_heads: raw.n_kv_heads,
            max_q_heads: raw.max_q_heads,
            head_dim_k: raw.head_dim_k,
            head_dim_v: raw.head_dim_v,
        }
    }
}

/// An attention operator with settings, by its name in the registry of a device (`flash`, `vanilla`,
/// `decode`, `ring`, `lightning`, their aliases, or one of [`Device::operator_register`]). Bind it to
/// layers of caches with [`Cache::bind_operator`], or attend without a cache with
/// [`Operator::forward`]. Layers keep what they need of it: it may be dropped at any time. See
/// `kvc/operators.h`.
///
/// ```
/// # use kvc::*;
/// # fn f(device: &Device, cache: &mut Cache) -> Result<()> {
/// let settings = OperatorDesc { stretches: 4, ..Default::default() };
/// let ring = Operator::new(device, "ring", &settings)?;
/// cache.bind_operator(0, 2, Modes::PREFILL, Some(&ring))?;
/// cache.bind_operator(0, 2, Modes::PREFILL, None)?; // what the library chooses again
/// # Ok(())
/// # }
/// ```
#[must_use = "an operator that is dropped is destroyed"]
pub struct Operator {
    pub(crate) handle: *mut sys::kvc_operator,
}

// Of the functions that take an operator only forward is exclusive, which takes &mut self. Callers'
// operators are Send and Sync.
unsafe impl Send for Operator {}
unsafe impl Sync for Operator {}

impl Operator {
    /// Makes an operator, and takes the room of [`Operator::forward`]. Blocks are rounded up to the
    /// multiples of [`OperatorInfo`]. NOT_SUPPORTED: a setting that the operator lacks, or a block
    /// larger than it has.
    pub fn new(device: &Device, name: &str, desc: &OperatorDesc) -> Result<Operator> {
        let (name, desc, mut handle) = (c_string("name", name)?, desc.raw(), ptr::null_mut());
        check(unsafe {
            sys::kvc_operator_create(device.handle, name.as_ptr(), &desc, &mut handle)
        })?;
        Ok(Operator { handle })
    }

    /// Describes the operator.
    pub fn info(&self) -> Result<OperatorInfo> {
        let handle = self.handle;
        OperatorInfo::filled_in(|out| unsafe {
            sys::kvc_operator_query(handle, out, ptr::null_mut())
        })
    }

    /// Returns the settings as they are used.
    pub fn desc(&self) -> Result<OperatorDesc> {
        let mut raw = OperatorDesc::default().raw();
        check(unsafe { sys::kvc_operator_query(self.handle, ptr::null_mut(), &mut raw) })?;
        Ok(OperatorDesc::from_raw(&raw))
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Operator");
        if let Ok(info) = self.info() {
            text.field("name", &info.name);
        }
        text.finish_non_exhaustive()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        unsafe { sys::kvc_operator_destroy(self.handle) };
    }
}

impl Cache {
    /// Lets layers [begin, end) attend with `op` in passes of these modes; `None`: with what the library
    /// chooses. NOT_SUPPORTED: the operator lacks what the layers have bound and store. What a call
    /// needs and the operator lacks is refused at the call.
    pub fn bind_operator(
        &mut self,
        begin: i32,
        end: i32,
        modes: Modes,
        op: Option<&Operator>,
    ) -> Result<()> {
        let op = op.map_or(ptr::null_mut(), |op| op.handle);
        check(unsafe { sys::kvc_bind_operator(self.handle, begin, end, modes.0, op) })
    }
}
