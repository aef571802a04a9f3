use crate::cache::Cache;
use crate::descriptors::{CacheDesc, Kind};
use crate::device::Device;
use crate::error::{Error, Result, Status};
use crate::tensor::DType;
use kvc_sys as sys;

/// What one layer of a model needs of a cache, for [`Cache::from_layers`]. A layer of the model that
/// needs two caches (self attention and cross attention, or attention beside a state-space model) is
/// two of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The geometry of the cache that the layer lies in. `n_layers` must be 0: it is counted.
    pub desc: CacheDesc,
    pub kind: Kind,
}

impl Layer {
    /// Replaces each 0 that stands for F32, or for another number of the same description, by what it
    /// stands for. A 0 that a cache needs stays, so that what it refuses is refused.
    fn spelled_out(&self) -> Layer {
        let mut layer = self.clone();
        let type_of = |dtype: DType| match dtype {
            DType(0) => DType::F32,
            dtype => dtype,
        };
        match &mut layer.kind {
            Kind::Recurrent(recurrent) => {
                recurrent.dtype_state = type_of(recurrent.dtype_state);
                recurrent.dtype_conv = type_of(recurrent.dtype_conv);
            }
            Kind::Transformer(rows) => {
                rows.mask_dtype = type_of(rows.mask_dtype);
                if rows.value_heads == 0 {
                    rows.value_heads = layer.desc.n_kv_heads;
                }
                if rows.ring && rows.reach == 0 {
                    rows.reach = layer.desc.capacity.saturating_sub(1);
                }
            }
            Kind::Causal(_) | Kind::Encoder(_) | Kind::Lightning(_) => {}
        }
        if !matches!(layer.kind, Kind::Recurrent(_)) {
            let desc = &mut layer.desc;
            desc.dtype_k = type_of(desc.dtype_k);
            if !desc.v_in_k {
                desc.dtype_v = type_of(desc.dtype_v);
            }
            if desc.head_dim_v == 0 {
                desc.head_dim_v = desc.head_dim_k;
            }
        }
        layer
    }
}

impl Cache {
    /// Makes the caches that the layers of a model need, and one of them all, whose layer `i` is the
    /// `i`-th. Equal layers share a cache; a type, a head size, heads of V or a ring's reach of 0 equal
    /// what they stand for. [`Cache::children`] has the caches, in the order in which the layers name
    /// them first.
    ///
    /// Windows beside full layers, five to one, as in Gemma 3:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_kv_heads: 1, head_dim_k: 256, dtype_k: DType::F16, dtype_v: DType::F16,
    ///     max_sequences: 4, max_batch: 64, capacity: 8192,
    ///     ..Default::default()
    /// };
    /// let full = Kind::Causal(CausalDesc::default());
    /// let window = Kind::Causal(CausalDesc { reach: 511, ..Default::default() });
    /// let [full, window] = [full, window].map(|kind| Layer { desc: desc.clone(), kind });
    /// let layers = (0..18).map(|i| if i % 6 == 5 { &full } else { &window });
    /// let model = Cache::from_layers(&device, layers)?;
    /// assert_eq!(model.owner(5), Some((1, 0))); // the first full layer
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Self attention (layer `2 * i`) and cross attention (layer `2 * i + 1`), as in Whisper:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_kv_heads: 6, head_dim_k: 64, max_sequences: 8, max_batch: 64, ..Default::default()
    /// };
    /// let own = Layer {
    ///     desc: CacheDesc { capacity: 448, ..desc.clone() },
    ///     kind: Kind::Causal(CausalDesc::default()),
    /// };
    /// let cross = Layer {
    ///     desc: CacheDesc { capacity: 1500, ..desc },
    ///     kind: Kind::Encoder(EncoderDesc::default()),
    /// };
    /// let mut model = Cache::from_layers(&device, [&own, &cross].into_iter().cycle().take(2 * 4))?;
    /// let pass = model.begin_with(&[0], &[0], &[TOKEN_ENCODER_INPUT])?; // of both
    /// # pass.abort()
    /// # }
    /// ```
    ///
    /// Three recurrent layers, then attention, as in Qwen3-Next. The model steps back to a checkpoint,
    /// and so do its keys and values:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let bounds = CacheDesc { max_sequences: 2, max_batch: 64, ..Default::default() };
    /// let full = Layer {
    ///     desc: CacheDesc { n_kv_heads: 2, head_dim_k: 64, capacity: 4096, ..bounds.clone() },
    ///     kind: Kind::Causal(CausalDesc::default()),
    /// };
    /// let delta = Layer {
    ///     desc: bounds,
    ///     kind: Kind::Recurrent(RecurrentDesc {
    ///         state_size: 8 * 16 * 16, conv_channels: 96, conv_dim: 3, checkpoints: 4,
    ///         ..Default::default()
    ///     }),
    /// };
    /// let layers = (0..12).map(|i| if i % 4 == 3 { &full } else { &delta });
    /// let mut model = Cache::from_layers(&device, layers)?;
    ///
    /// # let (x, k) = ([0.5; 96], [0.5; 2 * 64]);
    /// # let (x, k) = (Tensor::f32(&x, &[1, 96])?, Tensor::f32(&k, &[1, 2, 64])?);
    /// for position in 0..5 {
    ///     let mut pass = model.begin(&[position], &[0])?;
    ///     for layer in 0..12 {
    ///         if layer % 4 == 3 {
    ///             pass.put(layer, k, k)?; // and attention
    ///             continue;
    ///         }
    ///         pass.state_conv(layer, x)?;
    ///         let mut view = pass.state_view(layer, Part::Recurrent)?;
    ///         for mut states in view.f32().expect("stored as F32") {
    ///             let (before, row) = states.step(0);
    ///             row.iter_mut().zip(before).for_each(|(x, y)| *x = y / 2.0 + 1.0); // your rule
    ///         }
    ///         view.done()?;
    ///     }
    ///     pass.commit()?;
    ///     if position == 2 {
    ///         model.checkpoint_take(0)?;
    ///     }
    /// }
    /// assert_eq!(model.resume(0, 4)?, 3); // where every child can continue
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Seven layers of lightning attention, then one of softmax, as in MiniMax-01:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_kv_heads: 8, head_dim_k: 16, max_sequences: 2, max_batch: 64, ..Default::default()
    /// };
    /// let full = Layer {
    ///     desc: CacheDesc { capacity: 4096, ..desc.clone() },
    ///     kind: Kind::Causal(CausalDesc::default()),
    /// };
    /// let lightning = Layer { desc, kind: Kind::Lightning(LightningDesc::default()) };
    /// let layers = (0..16).map(|i| if i % 8 == 7 { &full } else { &lightning });
    /// let mut model = Cache::from_layers(&device, layers)?;
    /// for layer in (0..16).filter(|i| i % 8 != 7) {
    ///     let mut of_heads = [0.0; 8];
    ///     slopes(Slopes::Minimax, layer, 16, &mut of_heads)?;
    ///     model.bind_decay(layer, layer + 1, &of_heads)?;
    /// }
    /// // In a pass each layer takes put_attention(), whatever it is.
    /// # let pass = model.begin(&[0], &[0])?;
    /// # pass.abort()
    /// # }
    /// ```
    pub fn from_layers<'l>(
        device: &Device,
        layers: impl IntoIterator<Item = &'l Layer>,
    ) -> Result<Cache> {
        let plan = Plan::new(layers)?;
        let children = plan.each(|desc, kind| Cache::new(device, desc, kind));
        let children = children.collect::<Result<Vec<Cache>>>()?;
        Ok(Cache::wrap(children, &plan.places)?)
    }

    /// Returns the bytes that [`Cache::from_layers`] would take. Allocates no cache.
    pub fn layers_memory_bytes<'l>(
        device: &Device,
        layers: impl IntoIterator<Item = &'l Layer>,
    ) -> Result<u64> {
        let plan = Plan::new(layers)?;
        let bytes = plan.each(|desc, kind| Cache::memory_bytes(device, desc, kind));
        bytes.sum()
    }
}

/// The caches that some layers need.
struct Plan<'l> {
    different: Vec<Different<'l>>,
    places: Vec<(usize, i32)>,
}

/// A layer that differs from those before it.
struct Different<'l> {
    layer: &'l Layer,
    /// What others are compared with.
    spelled_out: Layer,
    /// How many are equal to it, with itself.
    n: i32,
}

impl<'l> Plan<'l> {
    fn new(layers: impl IntoIterator<Item = &'l Layer>) -> Result<Plan<'l>> {
        let (mut different, mut places) = (Vec::<Different>::new(), Vec::new());
        for (i, layer) in layers.into_iter().enumerate() {
            if layer.desc.n_layers != 0 {
                let n = layer.desc.n_layers;
                let message = format!("layer {i} has n_layers {n}, not 0: they are counted");
                return Err(refused(message));
            }
            let spelled_out = layer.spelled_out();
            let known = different
                .iter()
                .position(|other| other.spelled_out == spelled_out);
            let child = known.unwrap_or(different.len());
            if known.is_none() {
                different.push(Different {
                    layer,
                    spelled_out,
                    n: 0,
                });
            }
            let n = &mut different[child].n;
            places.push((child, *n));
            *n += 1;
        }
        if places.is_empty() {
            return Err(refused(
                "there are no layers: give one for each of the model".into(),
            ));
        }
        let (n, most) = (different.len(), sys::KVC_MAX_CHILDREN);
        if n > most as usize {
            return Err(refused(format!(
                "the layers need {n} caches, one for each that differs from those before it; at most \
                 {most} move as one"
            )));
        }
        Ok(Plan { different, places })
    }

    /// Makes something of each cache. Its errors name the first layer that lies in the cache.
    fn each<'p, T>(
        &'p self,
        make: impl Fn(&CacheDesc, &Kind) -> Result<T> + 'p,
    ) -> impl Iterator<Item = Result<T>> + 'p {
        let caches = self.different.iter().enumerate();
        caches.map(move |(child, different)| {
            let (desc, n_layers) = (different.layer.desc.clone(), different.n);
            make(&CacheDesc { n_layers, ..desc }, &different.layer.kind).map_err(|error| {
                let first = self.places.iter().position(|place| *place == (child, 0));
                let first = first.expect("a cache has layers");
                let message = format!("layer {first}: {}", error.message);
                Error::new(error.status, message)
            })
        })
    }
}

fn refused(message: String) -> Error {
    Error::new(Status::INVALID_ARGUMENT, message)
}
