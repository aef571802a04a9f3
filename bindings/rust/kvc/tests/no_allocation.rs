//! A step of a model allocates nothing: lists, rows, lightning, operators of the library's and of a
//! caller's, attention without a cache. (What the library itself allocates is tested in C.)
use kvc::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what the tests' own thread allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        System.alloc(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        System.dealloc(block, layout)
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocates_nothing(what: &str, mut step: impl FnMut(i32) -> Result<()>) {
    step(0).unwrap(); // the first one may learn how much room it needs
    let before = COUNT.with(Cell::get);
    for i in 1..8 {
        step(i).unwrap();
    }
    assert_eq!(COUNT.with(Cell::get), before, "{what}");
}

const KV: usize = 2;
const DIM: usize = 8;
const SHAPE: [usize; 3] = [2, KV, DIM];
const ROWS: [usize; 4] = [2, 1, KV, DIM];

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: 1,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        max_sequences: 2,
        max_batch: 2,
        ..Default::default()
    }
}

/// Zeros, by way of every field that a call has.
struct Zeros;

impl AttentionOperator for Zeros {
    fn forward_native(&self, call: &mut OperatorCall<'_>) -> Result<()> {
        let mut sees = [false; 128];
        let (n, columns) = (call.n_tokens, call.columns);
        call.call_mask(TensorMut::bool(&mut sees, &[n, columns])?)?;
        let mut positions = [0; 64];
        call.call_positions(call.sequence[0], &mut positions)?;
        for token in 0..n {
            for head in 0..call.n_q_heads {
                assert_eq!(call.q.f32(token, head).unwrap()[0], 0.5);
                call.out.f32(token, head).unwrap().fill(0.0);
            }
        }
        Ok(())
    }
}

/// One token of each sequence, attended in both ways.
fn pass(pass: Pass<'_>, shape: &[usize]) -> Result<()> {
    let mut pass = pass;
    let (x, mut out) = ([0.5; 2 * KV * DIM], [0.0; 2 * KV * DIM]);
    let x = Tensor::f32(&x, shape)?;
    pass.put(0, x, x)?;
    pass.attention(0, x, TensorMut::f32(&mut out, shape)?)?;
    pass.put_attention(0, x, x, x, TensorMut::f32(&mut out, shape)?)?;
    pass.commit()
}

#[test]
fn steps_allocate_nothing() {
    let device = Device::open("cpu", 1).unwrap();
    let all = OperatorInfo {
        modes: Modes::ALL,
        features: Features::TRANSFORMER,
        ..Default::default()
    };
    device.operator_register("zeros", &all, Zeros).unwrap();
    let with_capacity = CacheDesc {
        capacity: 32,
        ..desc()
    };
    let causal = Kind::Causal(CausalDesc::default());
    let transformer = Kind::Transformer(TransformerDesc::default());
    let lightning = Kind::Lightning(LightningDesc::default());

    for operator in [None, Some("vanilla"), Some("zeros")] {
        let bound = operator.map(|name| {
            let settings = OperatorDesc::default();
            Operator::new(&device, name, &settings).unwrap()
        });
        for kind in [&causal, &transformer] {
            let mut cache = Cache::new(&device, &with_capacity, kind).unwrap();
            cache
                .bind_operator(0, 1, Modes::ALL, bound.as_ref())
                .unwrap();
            allocates_nothing(&format!("{operator:?} {kind:?}"), |i| match kind {
                Kind::Transformer(_) => {
                    let batch = RowBatch {
                        valid: Some(&[1, 1]),
                        ..Default::default()
                    };
                    cache.fits_rows(1, &batch)?;
                    pass(cache.begin_rows(1, &batch)?, &ROWS)?;
                    let (mut index, mut starts) = ([0; 2], [0; 2]);
                    cache.rows_query(0, Some(&mut index), Some(&mut starts))?;
                    cache.rows_set(0, None, Some(&[0, 1]))?;
                    let (k, _) = cache.rows_view(0)?;
                    assert_eq!(k.codes.f32(0, 0).unwrap()[0], 0.5);
                    Ok(())
                }
                _ => pass(cache.begin(&[i, i], &[0, 1])?, &SHAPE),
            });
        }
    }

    let mut cache = Cache::new(&device, &desc(), &lightning).unwrap();
    cache.bind_decay(0, 1, &[0.5; KV]).unwrap();
    allocates_nothing("lightning", |i| {
        pass(cache.begin(&[i, i], &[0, 1])?, &SHAPE)?;
        let mut state = [0.0; KV * DIM * DIM];
        let into = TensorMut::f32(&mut state, &[1, KV, DIM, DIM])?;
        cache.lightning_read(0, 0, into)
    });

    let bounds = OperatorDesc {
        max_rows: 2,
        max_q_len: 1,
        max_kv_len: 1,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        ..Default::default()
    };
    let mut flash = Operator::new(&device, "flash", &bounds).unwrap();
    allocates_nothing("forward", |_| {
        let (x, mut out) = ([0.5; 2 * KV * DIM], [0.0; 2 * KV * DIM]);
        let x = Tensor::f32(&x, &ROWS)?;
        let into = TensorMut::f32(&mut out, &ROWS)?;
        flash.forward(&ForwardDesc::default(), x, x, x, into)
    });
}
