//! Transformer caches: random passes of rows beside a model of what each row holds and each token sees,
//! and what a caller may do wrong.
mod support;
use kvc::*;
use std::collections::BTreeMap;
use support::{attend, fails, near, Random};

const DIM: usize = 4;
const KV: usize = 2;
const Q: usize = 4;

/// What a row holds: K and V of all heads by position.
#[derive(Clone, Default)]
struct Row {
    index: i32,
    starts: i32,
    lost_below: i32,
    held: BTreeMap<i32, (Vec<f32>, Vec<f32>)>,
}

impl Row {
    fn cut(&mut self, to: i32) {
        self.held.retain(|&position, _| position < to);
        self.index = to;
        if to == 0 {
            self.lost_below = 0;
        }
    }

    fn can_continue(&self, at: i32, reach: i32) -> bool {
        at == 0 || at == self.index || 0.max(at - reach) >= self.lost_below
    }
}

/// What a cache should hold.
struct Model {
    desc: CacheDesc,
    kind: TransformerDesc,
    rows: Vec<Row>,
}

struct World {
    random: Random,
    device: Device,
    q_max: i32,
    cache: Cache,
    model: Model,
}

/// What a pass brings besides its tokens.
struct Pass {
    q_len: i32,
    valid: Vec<i32>,
    mask: Option<Vec<i32>>,
    types: Option<Vec<i32>>,
    not_causal: bool,
}

impl Pass {
    fn batch<'a>(&'a self, mask: Option<Tensor<'a>>) -> RowBatch<'a> {
        RowBatch {
            valid: Some(&self.valid),
            attention_mask: mask,
            token_types: self.types.as_deref(),
            not_causal: self.not_causal,
            ..Default::default()
        }
    }
}

impl Model {
    fn reach(&self) -> i32 {
        match (self.kind.reach, self.kind.ring) {
            (0, true) => self.desc.capacity - 1,
            (0, false) => i32::MAX,
            (reach, _) => reach,
        }
    }

    fn sees(&self, pass: &Pass, b: usize, p: i32, j: i32) -> bool {
        let (row, n) = (&self.rows[b], self.desc.capacity as usize);
        let type_of = |position: i32| match &pass.types {
            Some(types) if position >= row.index => {
                types[b * pass.q_len as usize + (position - row.index) as usize]
            }
            _ => 0,
        };
        let hidden = |mask: &Vec<i32>| mask[b * n + j as usize] == 0;
        if j < row.starts || pass.mask.as_ref().map_or(false, hidden) {
            return false;
        }
        let same_type = type_of(p) != 0 && type_of(p) == type_of(j);
        same_type || ((j <= p || pass.not_causal) && j >= p.saturating_sub(self.reach()))
    }
}

/// The vector of the KV head that a query head reads.
fn of_head(vectors: &[f32], query_head: usize) -> &[f32] {
    &vectors[query_head / (Q / KV) * DIM..][..DIM]
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let (batch, q_max) = (random.range(1, 4), random.range(1, 5));
        let capacity = random.range(4, 11);
        let ring = random.one_in(2);
        let kind = TransformerDesc {
            ring,
            reach: [0, random.range(1, capacity)][random.range(0, 2) as usize],
            ..Default::default()
        };
        let desc = CacheDesc {
            n_layers: 2,
            n_kv_heads: KV as i32,
            head_dim_k: DIM as i32,
            max_sequences: batch,
            capacity,
            max_batch: batch * q_max,
            ..Default::default()
        };
        let device = Device::open("cpu", 1).unwrap();
        let cache = Cache::new(&device, &desc, &Kind::Transformer(kind.clone())).unwrap();
        World {
            random,
            device,
            q_max,
            cache,
            model: Model {
                desc,
                kind,
                rows: vec![Row::default(); batch as usize],
            },
        }
    }

    /// A pass of random tokens: what it sees, and how it ends.
    fn pass(&mut self) {
        let (batch, n) = (self.model.rows.len(), self.model.desc.capacity);
        let random = &mut self.random;
        let q_len = random.range(1, self.q_max + 1);
        let (cells, tokens) = (batch * n as usize, batch * q_len as usize);
        let mut bits = |n: usize, most| (0..n).map(|_| random.range(0, most)).collect::<Vec<_>>();
        let (valid, mask, types) = (bits(batch, q_len + 1), bits(cells, 3), bits(tokens, 3));
        let pass = Pass {
            q_len,
            valid,
            mask: (!self.model.kind.ring && random.one_in(3)).then_some(mask),
            types: random.one_in(3).then_some(types),
            not_causal: random.one_in(4),
        };
        let as_bools: Vec<bool> = pass.mask.iter().flatten().map(|&x| x != 0).collect();
        let shape = [batch, n as usize];
        let mask = pass.mask.as_ref().map(|mask| match random.one_in(2) {
            true => Tensor::bool(&as_bools, &shape).unwrap(),
            false => Tensor::i32(mask, &shape).unwrap(),
        });
        let x = |random: &mut Random| random.numbers(tokens * KV * DIM);
        let (k, v) = (x(random), x(random));
        let q = random.numbers(tokens * Q * DIM);
        let (mut out, mut lse) = (vec![7.0; tokens * Q * DIM], vec![7.0; tokens * Q]);

        let batch_of_rows = pass.batch(mask);
        let fits = self.cache.fits_rows(q_len, &batch_of_rows);
        let begun = self.cache.begin_rows(q_len, &batch_of_rows);
        assert_eq!(fits.as_ref().err(), begun.as_ref().err());
        let is_full = |(row, &valid): (&Row, &i32)| row.index + valid > n && !self.model.kind.ring;
        if self.model.rows.iter().zip(&pass.valid).any(is_full) {
            return fails(begun, Status::CACHE_FULL, "row");
        }
        let mut open = begun.unwrap();
        let (kv, queries) = (
            [batch, q_len as usize, KV, DIM],
            [batch, q_len as usize, Q, DIM],
        );
        for layer in 0..2 {
            let (k, v) = (Tensor::f32(&k, &kv).unwrap(), Tensor::f32(&v, &kv).unwrap());
            open.put(layer, k, v).unwrap();
        }
        let extra = AttentionExtra {
            lse: Some(TensorMut::f32(&mut lse, &queries[..3]).unwrap()),
            ..Default::default()
        };
        let into = TensorMut::f32(&mut out, &queries).unwrap();
        open.attention_with(1, Tensor::f32(&q, &queries).unwrap(), into, extra)
            .unwrap();

        // What the rows hold in the pass, and what its tokens see of it.
        let mut held: Vec<_> = self.model.rows.iter().map(|row| row.held.clone()).collect();
        for (b, row) in self.model.rows.iter().enumerate() {
            for i in 0..pass.valid[b] {
                let at = (b * q_len as usize + i as usize) * KV * DIM;
                let (k, v) = (k[at..][..KV * DIM].to_vec(), v[at..][..KV * DIM].to_vec());
                held[b].insert(row.index + i, (k, v));
            }
        }
        for token in 0..tokens {
            let (b, i) = (token / q_len as usize, (token % q_len as usize) as i32);
            for head in 0..Q {
                let at = token * Q + head;
                let got = &out[at * DIM..][..DIM];
                if i >= pass.valid[b] {
                    assert_eq!((got, lse[at]), (&[0.0; DIM][..], f32::NEG_INFINITY));
                    continue;
                }
                let p = self.model.rows[b].index + i;
                let seen = held[b]
                    .iter()
                    .filter(|(&j, _)| self.model.sees(&pass, b, p, j));
                let seen: Vec<_> = seen
                    .map(|(_, (k, v))| (of_head(k, head), of_head(v, head), 0.0))
                    .collect();
                if seen.is_empty() {
                    assert_eq!((got, lse[at]), (&[0.0; DIM][..], f32::NEG_INFINITY));
                    continue;
                }
                let (want, sum) = attend(&q[at * DIM..][..DIM], &seen, 0.5);
                assert!(got.iter().zip(&want).all(|(&got, &want)| near(got, want)));
                assert!(near(lse[at], sum));
            }
        }

        let mut keep = pass.valid.clone();
        match random.range(0, 4) {
            0 => {
                open.abort().unwrap();
                return;
            }
            1 if pass.types.is_none() && !pass.not_causal => {
                keep = keep.iter().map(|&n| random.range(0, n + 1)).collect();
                let sequences: Vec<i32> = (0..batch as i32).collect();
                open.commit_prefix(&sequences, &keep).unwrap();
            }
            _ => open.commit().unwrap(),
        }
        for ((row, held), keep) in self.model.rows.iter_mut().zip(held).zip(keep) {
            row.held = held;
            row.cut(row.index + keep);
            if self.model.kind.ring {
                row.lost_below = row.lost_below.max(row.index - n);
                let lost_below = row.lost_below;
                row.held.retain(|&position, _| position >= lost_below);
            }
        }
    }

    /// Index and starts of some rows.
    fn set(&mut self) {
        let (reach, n) = (self.model.reach(), self.model.rows.len() as i32);
        let row = self.random.range(0, n);
        let model = &mut self.model.rows[row as usize];
        if self.random.one_in(2) {
            let starts = self.random.range(0, self.model.desc.capacity + 1);
            self.cache.rows_set(row, None, Some(&[starts])).unwrap();
            model.starts = starts;
            return;
        }
        let index = self.random.range(0, model.index + 1);
        let can = model.can_continue(index, reach);
        let set = self.cache.rows_set(row, Some(&[index]), None);
        if !can {
            return fails(set, Status::WINDOW_LOST, "row");
        }
        set.unwrap();
        model.cut(index);
    }

    fn resume(&mut self) {
        let (reach, n) = (self.model.reach(), self.model.rows.len() as i32);
        let row = self.random.range(0, n);
        let model = &mut self.model.rows[row as usize];
        let want = self.random.range(0, model.index + 3);
        let mut places = (0..=want.min(model.index)).rev();
        let best = places.find(|&at| model.can_continue(at, reach)).unwrap();
        assert_eq!(self.cache.can_resume(row, want), Ok(best));
        assert_eq!(self.cache.resume(row, want), Ok(best));
        model.cut(best);
        if best == 0 {
            model.starts = 0;
        }
    }

    /// The row of a cache of one row, which was filled alone.
    fn insert(&mut self) {
        let n = self
            .random
            .range(1, self.q_max + 1)
            .min(self.model.desc.capacity);
        let desc = CacheDesc {
            max_sequences: 1,
            max_batch: n,
            ..self.model.desc.clone()
        };
        let kind = Kind::Transformer(self.model.kind.clone());
        let mut other = Cache::new(&self.device, &desc, &kind).unwrap();
        let x = self.random.numbers(n as usize * KV * DIM);
        let shape = [1, n as usize, KV, DIM];
        let mut pass = other.begin_rows(n, &RowBatch::default()).unwrap();
        for layer in 0..2 {
            let x = Tensor::f32(&x, &shape).unwrap();
            pass.put(layer, x, x).unwrap();
        }
        pass.commit().unwrap();
        let slot = self.random.range(0, self.model.rows.len() as i32);
        self.cache.insert(&other, slot).unwrap();
        let vectors = x.chunks(KV * DIM).map(|x| (x.to_vec(), x.to_vec()));
        self.model.rows[slot as usize] = Row {
            index: n,
            held: (0..).zip(vectors).collect(),
            ..Default::default()
        };
    }

    fn reorder(&mut self) {
        let n = self.model.rows.len() as i32;
        let destinations: Vec<i32> = (0..n).collect();
        let sources: Vec<i32> = (0..n).map(|_| self.random.range(0, n)).collect();
        self.cache.reorder(&destinations, &sources).unwrap();
        self.model.rows = sources
            .iter()
            .map(|&s| self.model.rows[s as usize].clone())
            .collect();
    }

    fn compare(&self) {
        let n = self.model.rows.len();
        let (mut index, mut starts) = (vec![-1; n], vec![-1; n]);
        let query = |index: Option<&mut [i32]>, starts: Option<&mut [i32]>| {
            self.cache.rows_query(0, index, starts).unwrap()
        };
        query(Some(&mut index), None);
        query(None, Some(&mut starts));
        let (k, v) = self.cache.rows_view(1).unwrap();
        let columns = k.codes.shape()[1];
        for (b, row) in self.model.rows.iter().enumerate() {
            assert_eq!((index[b], starts[b]), (row.index, row.starts));
            let info = self.cache.sequence(b as i32).unwrap();
            assert_eq!((info.next, info.count), (row.index, row.held.len() as i32));
            for (&position, (keys, values)) in &row.held {
                let cell = b * columns + position as usize % columns;
                for head in 0..KV {
                    let want = |x: &[f32]| x[head * DIM..][..DIM].to_vec();
                    assert_eq!(k.codes.f32(cell, head).unwrap(), want(keys));
                    assert_eq!(v.codes.f32(cell, head).unwrap(), want(values));
                }
            }
        }
        self.cache.check().unwrap();
    }
}

#[test]
fn rows_hold_and_see_what_they_should() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..40 {
            match world.random.range(0, 10) {
                0 => world.set(),
                1 => world.insert(),
                2 => world.reorder(),
                3 => world.resume(),
                _ => world.pass(),
            }
            world.compare();
        }
    }
}
