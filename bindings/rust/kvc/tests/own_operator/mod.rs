//! What tests of callers' operators need: one that does what it is told, and a cache for it.
#![allow(dead_code)] // each test takes some of it
use kvc::*;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::Arc;

pub const KV: usize = 2;
pub const Q: usize = 4;
pub const DIM: usize = 8;

/// What an operator by the definition has.
pub fn everything() -> OperatorInfo {
    let all = (0..22).fold(0, |all, bit| all | 1 << bit);
    let not = Features::SHIFTED.0 | Features::ROTATED.0 | Features::LIGHTNING.0;
    OperatorInfo {
        modes: Modes::ALL,
        features: Features(all & !not),
        ..Default::default()
    }
}

pub fn desc(max_sequences: i32) -> CacheDesc {
    CacheDesc {
        n_layers: 1,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        max_sequences,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    }
}

/// Does what a test tells it.
pub struct Scripted<F> {
    forward: F,
    drops: Arc<AtomicI32>,
}

impl<F> AttentionOperator for Scripted<F>
where
    F: Fn(&mut OperatorCall<'_>) -> Result<()> + Send + Sync,
{
    fn forward_native(&self, call: &mut OperatorCall<'_>) -> Result<()> {
        (self.forward)(call)
    }

    fn supports(&self, needs: &OperatorNeeds) -> Result<()> {
        match needs.head_dim_k {
            0 | 8 => Ok(()),
            _ => Err(Error::new(Status::NOT_SUPPORTED, "heads have 8 numbers")),
        }
    }
}

impl<F> Drop for Scripted<F> {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
        if std::thread::current().name() == Some("drops panic") {
            panic!("in drop");
        }
    }
}

pub fn scripted<F>(forward: F) -> (Scripted<F>, Arc<AtomicI32>)
where
    F: Fn(&mut OperatorCall<'_>) -> Result<()> + Send + Sync,
{
    let drops = Arc::new(AtomicI32::new(0));
    let counter = drops.clone();
    (Scripted { forward, drops }, counter)
}
