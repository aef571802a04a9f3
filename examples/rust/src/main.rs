//! A first program with kvc in Rust. Its twins in examples/c, examples/cpp and examples/go do the
//! same and print the same, byte for byte. Two of a server's conversations share a prompt, one
//! speculates, one runs out of context:
//!
//!     PKG_CONFIG_PATH=<prefix>/lib/pkgconfig LD_LIBRARY_PATH=<prefix>/lib cargo run
//!
//! A model would compute keys, values and queries (and rotate keys and queries by RoPE); here a
//! formula stands in for it.
use kvc::{Cache, Pass, Result, Status, Tensor, TensorMut};

const LAYERS: usize = 2;
const KV_HEADS: usize = 2;
const QUERY_HEADS: usize = 4;
const HEAD_DIM: usize = 16;

// ---- What a model would compute -----------------------------------------------------------------

#[derive(Clone, Copy)]
enum Kind {
    Key,
    Value,
    Query,
}

/// Eighths between -2 and 2: exact in every storage type and in every language.
fn element(
    kind: Kind,
    layer: usize,
    sequence: usize,
    position: usize,
    head: usize,
    dim: usize,
) -> f32 {
    let mixed = position * 29 + sequence * 13 + layer * 7 + head * 5 + dim * 3 + kind as usize * 11;
    (mixed as i32 % 33 - 16) as f32 / 8.0
}

/// [n, heads, HEAD_DIM] of consecutive positions
fn elements(
    kind: Kind,
    layer: usize,
    sequence: usize,
    position: usize,
    n: usize,
    heads: usize,
) -> Vec<f32> {
    let mut all = Vec::new();
    for token in 0..n {
        for head in 0..heads {
            for dim in 0..HEAD_DIM {
                all.push(element(kind, layer, sequence, position + token, head, dim));
            }
        }
    }
    all
}

// ---- Steps --------------------------------------------------------------------------------------

fn print_state(step: &str, cache: &Cache) -> Result<()> {
    let [first, second] = cache.digest()?;
    println!("{step:14} {first:016x}{second:016x}");
    Ok(())
}

/// Opens a pass of n tokens of one sequence and runs the layers. The caller decides what to keep of
/// it.
fn forward(cache: &mut Cache, sequence: usize, position: usize, n: usize) -> Result<Pass<'_>> {
    let positions: Vec<i32> = (position..position + n).map(|p| p as i32).collect();
    let mut pass = cache.begin(&positions, &vec![sequence as i32; n])?;
    let (kv, qo) = ([n, KV_HEADS, HEAD_DIM], [n, QUERY_HEADS, HEAD_DIM]);
    let mut out = vec![0f32; n * QUERY_HEADS * HEAD_DIM];
    let mut sum = 0.0;
    for layer in 0..LAYERS {
        let k = elements(Kind::Key, layer, sequence, position, n, KV_HEADS);
        let v = elements(Kind::Value, layer, sequence, position, n, KV_HEADS);
        let q = elements(Kind::Query, layer, sequence, position, n, QUERY_HEADS);
        pass.put(layer as i32, Tensor::f32(&k, &kv)?, Tensor::f32(&v, &kv)?)?;
        pass.attention(
            layer as i32,
            Tensor::f32(&q, &qo)?,
            TensorMut::f32(&mut out, &qo)?,
        )?;
        out.iter().for_each(|&one| sum += f64::from(one));
    }
    let last = position + n - 1;
    println!(
        "{:14} sequence {sequence}, positions {position} to {last}: sum {sum:.3}",
        "attention"
    );
    Ok(pass)
}

fn converse(cache: &mut Cache) -> Result<()> {
    forward(cache, 0, 0, 8)?.commit()?;
    print_state("prompt", cache)?;
    for position in 8..16 {
        forward(cache, 0, position, 1)?.commit()?;
    }
    print_state("decode", cache)?;

    // Another conversation starts with the same 12 tokens: it shares their cells.
    println!(
        "{:14} continues at {}",
        "copy_prefix",
        cache.copy_prefix(0, 1, 12)?
    );
    print_state("copy_prefix", cache)?;

    // Four tokens were guessed, the model agrees with two.
    let pass = forward(cache, 1, 12, 4)?;
    print_state("draft", &pass)?;
    pass.commit_prefix(&[1], &[2])?;
    print_state("commit_prefix", cache)?;

    // Make room in the middle: later tokens move down and are read as if they had been computed
    // there.
    cache.remove(0, 4, 8)?;
    print_state("shift", cache)?;
    forward(cache, 0, 12, 1)?.commit()?;
    print_state("after shift", cache)?;

    // The user edits the last message.
    println!("{:14} continues at {}", "resume", cache.resume(1, 13)?);
    print_state("resume", cache)?;

    // The window slides: a sequence cannot continue from tokens that have left it.
    for position in (13..37).step_by(8) {
        forward(cache, 0, position, 8)?.commit()?;
    }
    print_state("slide", cache)?;
    match cache.remove(0, 10, kvc::SEQ_END) {
        Err(error) if error.status == Status::WINDOW_LOST => println!("{:14} {error}", "handled"),
        other => other?,
    }
    println!(
        "{:14} could continue at {}",
        "can_resume",
        cache.can_resume(0, 10)?
    );

    // A third conversation does not fit: the second one has to go.
    for position in (0..16).step_by(8) {
        let result = forward(cache, 2, position, 8).and_then(Pass::commit);
        match result {
            Err(error) if error.status == Status::CACHE_FULL => {
                println!("{:14} {error}", "handled");
                cache.remove(1, 0, kvc::SEQ_END)?;
                forward(cache, 2, position, 8)?.commit()?;
            }
            other => other?,
        }
    }
    print_state("third", cache)?;
    print_counts(cache)
}

fn print_counts(cache: &Cache) -> Result<()> {
    for sequence in 0..3 {
        let info = cache.sequence(sequence)?;
        println!(
            "{:14} {sequence}: positions {} to {}, {} held",
            "sequence", info.first, info.next, info.count
        );
    }
    let stats = cache.stats()?;
    println!(
        "{:14} {} of {} cells used, {} shared, {} passes",
        "stats", stats.cells_used, stats.cells, stats.cells_shared, stats.passes
    );
    cache.check()
}

fn main() -> Result<()> {
    let device = kvc::Device::open("cpu", 0)?;
    let desc = kvc::CacheDesc {
        n_layers: LAYERS as i32,
        n_kv_heads: KV_HEADS as i32,
        head_dim_k: HEAD_DIM as i32,
        dtype_k: kvc::DType::F16,
        dtype_v: kvc::DType::F16,
        max_sequences: 3,
        capacity: 64,
        max_batch: 8,
        max_q_heads: QUERY_HEADS as i32,
        cells: 44,
        ..Default::default()
    };
    let kind = kvc::Kind::Causal(kvc::CausalDesc {
        reach: 8,
        memory: 16,
        ..Default::default()
    });
    let mut cache = Cache::new(&device, &desc, &kind)?;
    let layers = LAYERS as i32;
    cache.bind_attention(
        0,
        layers,
        &kvc::AttentionDesc {
            n_q_heads: QUERY_HEADS as i32,
            ..Default::default()
        },
    )?;
    cache.bind_rope(
        0,
        layers,
        &kvc::RopeDesc {
            pairs: kvc::RopePairs::Halves,
            ..Default::default()
        },
    )?;
    converse(&mut cache)
}
