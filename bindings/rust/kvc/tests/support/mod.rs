//! What several tests need: numbers from a seed, errors, and attention by its definition.
#![allow(dead_code)] // each test takes some of it
use kvc::{Result, Status};

/// Numbers that look random and are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005);
        self.0 = self.0.wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Returns one of `begin..end`.
    pub fn range(&mut self, begin: i32, end: i32) -> i32 {
        begin + (self.draw() % (end - begin) as u64) as i32
    }

    /// Returns true once in `n` times.
    pub fn one_in(&mut self, n: i32) -> bool {
        self.range(0, n) == 0
    }

    /// Returns numbers from -1 to 1.
    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        let number = |_| (self.draw() % 65536) as f32 / 32768.0 - 1.0;
        (0..n).map(number).collect()
    }
}

pub fn fails<T>(result: Result<T>, status: Status, part: &str) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error} lacks {part:?}");
}

/// One query over the keys and values that it sees: the output and the log-sum-exp. A score is the
/// product times `scale`, plus the number beside the key.
pub fn attend(q: &[f32], seen: &[(&[f32], &[f32], f64)], scale: f64) -> (Vec<f64>, f64) {
    let dot = |k: &[f32]| -> f64 {
        q.iter()
            .zip(k)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum()
    };
    let scores: Vec<f64> = seen
        .iter()
        .map(|(k, _, add)| scale * dot(k) + add)
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let n = seen.first().map_or(0, |(_, v, _)| v.len());
    let mut out = vec![0.0; n];
    let mut sum = 0.0;
    for (score, (_, v, _)) in scores.iter().zip(seen) {
        let weight = (score - most).exp();
        sum += weight;
        out.iter_mut()
            .zip(*v)
            .for_each(|(o, &x)| *o += weight * f64::from(x));
    }
    out.iter_mut().for_each(|o| *o /= sum);
    (out, most + sum.ln())
}

pub fn near(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() <= 1e-5
}
