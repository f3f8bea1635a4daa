//! Numbers about numbers: quantiles, and how sure a median is.

use serde::Serialize;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// What a series of measurements says. In the unit of the series.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Summary {
    /// Measurements.
    pub(crate) n: usize,
    /// Smallest.
    pub(crate) min: f64,
    /// Median.
    pub(crate) p50: f64,
    /// 95% interval of the median, by bootstrap: low end.
    pub(crate) p50_low: f64,
    /// High end.
    pub(crate) p50_high: f64,
    /// Arithmetic mean.
    pub(crate) mean: f64,
    /// 99th percentile by nearest rank: the largest below 100 measurements.
    pub(crate) p99: f64,
    /// Largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Of a series; all zero for an empty one.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn of(series: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = series.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        let (p50_low, p50_high) = bootstrap(&sorted);
        Self {
            n,
            min: *min,
            p50: median(&sorted),
            p50_low,
            p50_high,
            mean: sorted.iter().sum::<f64>() / n as f64,
            p99: sorted[(n * 99).div_ceil(100) - 1],
            max: *max,
        }
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        return sorted[middle];
    }
    f64::midpoint(sorted[middle - 1], sorted[middle])
}

/// Where 95% of the medians of resampled series lie.
fn bootstrap(sorted: &[f64]) -> (f64, f64) {
    // Always the same draws, so that the same measurements give the same report.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or_default() % below
    };
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<f64> = (0..sorted.len())
                .map(|_| sorted[draw(sorted.len())])
                .collect();
            sample.sort_by(f64::total_cmp);
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (
        medians[RESAMPLES / 40],
        medians[RESAMPLES - RESAMPLES / 40 - 1],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_twenty_are_by_nearest_rank() {
        let summary = Summary::of((1..=20).map(f64::from));
        assert_eq!((summary.n, summary.min, summary.max), (20, 1.0, 20.0));
        assert!((summary.p50 - 10.5).abs() < 1e-9);
        assert!((summary.p99 - 20.0).abs() < 1e-9);
        assert!(summary.p50_low <= summary.p50 && summary.p50 <= summary.p50_high);
    }

    #[test]
    fn nothing_measured_is_no_panic() {
        assert_eq!(Summary::of([]).n, 0);
    }
}
