//! The ladder of a machine: what is tried to get it off its node, one after another, and for how
//! long each.
//!
//! Written as `Live=10m,Pause,Restart` in an annotation, or as a list in a maintenance.

use std::fmt;
use std::time::Duration;

/// Longest time on one rung: a month. What takes longer is `Block` in disguise.
const RUNG_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a machine leaves its node, from the gentlest way to none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// By live migration: the guest stands still for no longer than the downtime limit.
    Live,
    /// By migration that ends by post-copy after its first pass: the guest goes on before its memory,
    /// which is lost if the node is before all of it has followed.
    PostCopy,
    /// By migration in which the guest stands still for as long as the rest of the copy takes.
    Pause,
    /// It is stopped, and its virtual machine starts it elsewhere.
    Restart,
    /// It is stopped, and stays so until a person starts it.
    Shutdown,
    /// Not at all: a person has to do something.
    Block,
}

impl Method {
    /// All, from the gentlest.
    pub const ALL: [Self; 6] = [
        Self::Live,
        Self::PostCopy,
        Self::Pause,
        Self::Restart,
        Self::Shutdown,
        Self::Block,
    ];

    /// Its name in annotations and specs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::PostCopy => "PostCopy",
            Self::Pause => "Pause",
            Self::Restart => "Restart",
            Self::Shutdown => "Shutdown",
            Self::Block => "Block",
        }
    }

    /// Reads its name; `None` for a name that there isn't.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }

    /// Whether it is a migration.
    pub const fn moves(self) -> bool {
        match self {
            Self::Live | Self::PostCopy | Self::Pause => true,
            Self::Restart | Self::Shutdown | Self::Block => false,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One way, and for how long it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// The way.
    pub method: Method,
    /// How long it is tried; `None`: until it is impossible or an attempt failed.
    pub lasts: Option<Duration>,
}

/// Rungs, each rougher than the one before. The last is never left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder(Vec<Rung>);

impl Default for Ladder {
    /// Live, for ever.
    fn default() -> Self {
        Self(vec![Rung {
            method: Method::Live,
            lasts: None,
        }])
    }
}

/// What is wrong with a ladder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rung {}: {message}", .at + 1)]
pub struct LadderProblem {
    /// The rung, from 0.
    pub at: usize,
    /// Whether it is about the rung's time; else about its method.
    pub time: bool,
    /// What is wrong, and what would do.
    pub message: String,
}

impl LadderProblem {
    fn method(at: usize, message: String) -> Self {
        Self {
            at,
            time: false,
            message,
        }
    }

    fn time(at: usize, message: String) -> Self {
        Self {
            at,
            time: true,
            message,
        }
    }
}

impl Ladder {
    /// A ladder of `rungs`.
    ///
    /// # Errors
    /// When there is none, one isn't rougher than the one before, or a time is out of bounds.
    pub fn new(rungs: Vec<Rung>) -> Result<Self, LadderProblem> {
        let Some(last) = rungs.len().checked_sub(1) else {
            let why = "a ladder has at least one rung".to_owned();
            return Err(LadderProblem::method(0, why));
        };
        for (at, pair) in rungs.windows(2).enumerate() {
            if pair[1].method <= pair[0].method {
                let order = Method::ALL.map(Method::as_str).join(", ");
                let (next, before) = (pair[1].method, pair[0].method);
                let why = format!("{next} can't follow {before}; the order is {order}");
                return Err(LadderProblem::method(at + 1, why));
            }
        }
        for (at, rung) in rungs.iter().enumerate() {
            match rung.lasts {
                Some(_) if at == last => {
                    let why = "the last rung is never left and takes no time; end with Block to \
                               give up after it";
                    return Err(LadderProblem::time(at, why.to_owned()));
                }
                Some(time) if time.is_zero() || time > RUNG_MAX => {
                    let why = "a rung lasts from 1 second to 30 days".to_owned();
                    return Err(LadderProblem::time(at, why));
                }
                Some(_) | None => {}
            }
        }
        Ok(Self(rungs))
    }

    /// Reads `Live=10m,Pause,Restart`.
    ///
    /// # Errors
    /// As [`Self::new`], and for names and times that make no sense.
    pub fn parse(text: &str) -> Result<Self, LadderProblem> {
        let rungs = text.split(',').enumerate().map(|(at, word)| {
            let (name, time) = match word.trim().split_once('=') {
                Some((name, time)) => (name.trim(), Some(time.trim())),
                None => (word.trim(), None),
            };
            let method = Method::from_name(name).ok_or_else(|| unknown(at, name))?;
            let lasts = time.map(|time| duration(time).ok_or_else(|| no_time(at, time)));
            Ok(Rung {
                method,
                lasts: lasts.transpose()?,
            })
        });
        Self::new(rungs.collect::<Result<Vec<Rung>, LadderProblem>>()?)
    }

    /// The rungs, from the first; at least one.
    pub fn rungs(&self) -> &[Rung] {
        &self.0
    }

    /// The rung `at`; the last where there is none.
    pub fn rung(&self, at: usize) -> Rung {
        self.0[at.min(self.last())]
    }

    /// The rung of a machine that was to leave by `method`, also where the ladder was another then:
    /// the first that is no gentler.
    pub fn from_method(&self, method: Method) -> usize {
        let found = self.0.iter().position(|rung| rung.method >= method);
        found.unwrap_or_else(|| self.last())
    }

    /// The number of the last rung, from 0.
    pub fn last(&self) -> usize {
        self.0.len() - 1
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, rung) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{}", rung.method)?;
            if let Some(time) = rung.lasts {
                write!(f, "={}", spoken(time))?;
            }
        }
        Ok(())
    }
}

/// The refusal of a method that there isn't.
pub fn unknown(at: usize, name: &str) -> LadderProblem {
    let known = Method::ALL.map(Method::as_str).join(", ");
    LadderProblem::method(at, format!("{name:?} is none of {known}"))
}

fn no_time(at: usize, text: &str) -> LadderProblem {
    LadderProblem::time(at, format!("{text:?} is no time such as 90s, 10m or 1h30m"))
}

/// Reads `1h30m`, `10m` or `90s`; `None` for anything else.
fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut digits) = (0_u64, String::new());
    for letter in text.chars() {
        let unit = match letter {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            digit if digit.is_ascii_digit() => {
                digits.push(digit);
                continue;
            }
            _ => return None,
        };
        let count: u64 = digits.parse().ok()?;
        total = total.checked_add(count.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && !text.is_empty()).then(|| Duration::from_secs(total))
}

/// A time as people write it: `1h30m`, `10m`, `90s`.
pub fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    for (count, unit) in [(hours, 'h'), (minutes, 'm'), (rest, 's')] {
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    match text.is_empty() {
        true => "0s".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_is_read_and_written() {
        let ladder = Ladder::parse("Live=10m, Pause ,Restart=1h30m,Shutdown").expect("a ladder");
        assert_eq!(ladder.to_string(), "Live=10m,Pause,Restart=1h30m,Shutdown");
        assert_eq!(ladder.rung(0).lasts, Some(Duration::from_secs(600)));
        assert_eq!(ladder.rung(9).method, Method::Shutdown);
        assert_eq!(Ladder::default().to_string(), "Live");
        assert_eq!(ladder.from_method(Method::Pause), 1);
        let shorter = Ladder::parse("Live,Shutdown").expect("a ladder");
        assert_eq!(shorter.from_method(Method::Pause), 1, "never back");
        assert_eq!(shorter.from_method(Method::Block), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_rung() {
        for (text, at, time, word) in [
            ("", 0, false, "none of"),
            ("live", 0, false, "none of Live, PostCopy, Pause"),
            ("Live,", 1, false, "none of"),
            ("Live,Restart,Pause", 2, false, "can't follow Restart"),
            ("Live,Pause,PostCopy", 2, false, "can't follow Pause"),
            ("Live,Live", 1, false, "can't follow Live"),
            ("Live=10", 0, true, "no time"),
            ("Live=,Block", 0, true, "no time"),
            ("Live=0s,Block", 0, true, "1 second"),
            ("Live=800h,Block", 0, true, "30 days"),
            ("Live=99999999999999999999h,Block", 0, true, "no time"),
            ("Live,Block=5m", 1, true, "never left"),
        ] {
            let problem = Ladder::parse(text).expect_err(text);
            assert_eq!((problem.at, problem.time), (at, time), "{text}: {problem}");
            assert!(problem.message.contains(word), "{text}: {problem}");
        }
    }
}
