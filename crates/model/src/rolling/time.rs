//! Moments, and windows in which nothing begins.

use serde::{Deserialize, Serialize};

use super::order::Window;

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;
/// Names of days, from the one of the epoch.
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Whole seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub i64);

impl Moment {
    /// So many seconds later.
    pub const fn after(self, seconds: u64) -> Self {
        Self(self.0.saturating_add_unsigned(seconds))
    }

    /// A time as RFC 3339 has it, in UTC and with whole seconds: `2026-01-31T12:00:00Z`. `None` when
    /// it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        let fits = (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let seconds = (hour * 60 + minute) * MINUTE + second;
        fits.then(|| Self(days_since_epoch(year, month, day) * DAY + seconds))
    }
}

/// Minutes of a day: `22:30`. `None` when it is none.
pub(super) fn minutes(text: &str) -> Option<i64> {
    let (hour, minute) = text.split_once(':')?;
    let [hour, minute] = [number(hour, 2)?, number(minute, 2)?];
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

/// Whether `text` names a day of the week, in three letters.
pub(super) fn is_day(text: &str) -> bool {
    DAYS.contains(&text)
}

impl Window {
    /// When the window ends that `now` is in; `None` when `now` is in none.
    pub fn until(&self, now: Moment) -> Option<Moment> {
        if let (Some(from), Some(to)) = (Moment::parse(&self.from), Moment::parse(&self.to)) {
            return (from <= now && now < to).then_some(to);
        }
        let (from, to) = (minutes(&self.from)?, minutes(&self.to)?);
        // One that ends where it begins lasts a day; one that ends before goes on to the next day.
        let length = match (to - from).rem_euclid(24 * 60) {
            0 => DAY,
            minutes => minutes * MINUTE,
        };
        let today = now.0.div_euclid(DAY);
        [today - 1, today].into_iter().find_map(|day| {
            let name = DAYS[usize::try_from(day.rem_euclid(7)).unwrap_or_default()];
            if !self.days.is_empty() && !self.days.iter().any(|wanted| wanted == name) {
                return None;
            }
            let begin = day * DAY + from * MINUTE;
            let end = begin + length;
            (begin <= now.0 && now.0 < end).then_some(Moment(end))
        })
    }
}

fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(between);
    let mut found = [0; 3];
    for (slot, digits) in found.iter_mut().zip(digits) {
        *slot = number(parts.next()?, digits)?;
    }
    parts.next().is_none().then_some(found)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

const fn days_of(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01, in the Gregorian calendar. The year begins in March here, so that the leap
/// day is its last.
const fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Moment {
        Moment::parse(text).expect("a time")
    }

    fn window(from: &str, to: &str, days: &[&str]) -> Window {
        Window {
            from: from.to_owned(),
            to: to.to_owned(),
            days: days.iter().map(|&day| day.to_owned()).collect(),
        }
    }

    #[test]
    fn times_are_read_and_what_is_none_is_refused() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-29T01:56:34Z", 1_795_917_394),
        ] {
            assert_eq!(at(text), Moment(seconds), "{text}");
        }
        for text in [
            "",
            "2026-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-1-01T00:00:00Z",
            "2026-01-01T00:00:00+01:00",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
        for text in ["24:00", "9:00", "09:60", "0900", ""] {
            assert_eq!(minutes(text), None, "{text}");
        }
    }

    #[test]
    fn a_window_of_times_is_open_at_its_end() {
        let window = window("2026-12-24T00:00:00Z", "2026-12-27T00:00:00Z", &[]);
        assert_eq!(window.until(at("2026-12-23T23:59:59Z")), None);
        let end = at("2026-12-27T00:00:00Z");
        assert_eq!(window.until(at("2026-12-24T00:00:00Z")), Some(end));
        assert_eq!(window.until(end), None);
    }

    #[test]
    fn a_daily_window_may_last_into_the_next_day() {
        // 2026-11-27 is a Friday.
        let window = window("22:00", "06:00", &["Fri"]);
        let end = Some(at("2026-11-28T06:00:00Z"));
        assert_eq!(window.until(at("2026-11-27T21:59:59Z")), None);
        assert_eq!(window.until(at("2026-11-27T22:00:00Z")), end);
        assert_eq!(window.until(at("2026-11-28T05:59:59Z")), end);
        assert_eq!(window.until(at("2026-11-28T06:00:00Z")), None);
        assert_eq!(window.until(at("2026-11-28T23:00:00Z")), None);
    }
}
