//! Named places around durable steps and messages where a debug build can be made to fail.
//!
//! A test arms a place over the admin port: `PUT /debug/failpoints/NAME` with `kill`, `pause`,
//! `sleep MILLISECONDS` or `off` as its body. Each acts once; a pause ends with `off`.
//! `GET /debug/failpoints` lists every place that was reached, in the order of the first time.
//! Release builds have neither the places nor the endpoint. (The `fail` crate blocks the thread
//! that it pauses, which in an async program holds up others.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, put};
use tokio::sync::watch;

/// Most places that are kept: names hold states and commands, never ids.
const PLACES_MAX: usize = 4096;

/// Reaches a place by its name, given as to `format!`. Nothing in a release build.
#[macro_export]
macro_rules! failpoint {
    ($($name:tt)+) => {
        if cfg!(debug_assertions) {
            $crate::failpoint::reach(format!($($name)+)).await;
        }
    };
}

/// What happens at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The process ends at once, as by SIGKILL: nothing is flushed, closed or told.
    Kill,
    /// Whoever comes by stays until the place is off.
    Pause,
    /// Whoever comes by is late.
    Sleep(Duration),
}

#[derive(Debug)]
struct Place {
    name: String,
    reached: u64,
    act: Option<Act>,
    held: watch::Sender<bool>,
}

static PLACES: Mutex<Vec<Place>> = Mutex::new(Vec::new());

fn places() -> MutexGuard<'static, Vec<Place>> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place<'all>(all: &'all mut Vec<Place>, name: &str) -> Option<&'all mut Place> {
    if let Some(found) = all.iter().position(|place| place.name == name) {
        return all.get_mut(found);
    }
    if all.len() >= PLACES_MAX {
        return None;
    }
    all.push(Place {
        name: name.to_owned(),
        reached: 0,
        act: None,
        held: watch::Sender::new(false),
    });
    all.last_mut()
}

/// Counts the place `name`, and does what it is armed with. Use [`failpoint!`](crate::failpoint).
pub async fn reach(name: String) {
    let (act, mut held) = {
        let mut all = places();
        let Some(place) = place(&mut all, &name) else {
            return;
        };
        place.reached += 1;
        let act = place.act.take();
        if act == Some(Act::Pause) {
            place.held.send_replace(true);
        }
        (act, place.held.subscribe())
    };
    match act {
        None => {}
        Some(Act::Kill) => std::process::abort(),
        Some(Act::Sleep(time)) => tokio::time::sleep(time).await, // ordered by a test
        Some(Act::Pause) => {
            // The sender lives as long as the process.
            let _ = held.wait_for(|held| !held).await;
        }
    }
}

/// The endpoint's routes; none in a release build.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    if !cfg!(debug_assertions) {
        return Router::new();
    }
    Router::new()
        .route("/debug/failpoints", get(list))
        .route("/debug/failpoints/{name}", put(arm))
}

/// One line a place: its name, how often it was reached, and `held` while somebody is paused there.
async fn list() -> String {
    let line = |place: &Place| {
        let held = if *place.held.borrow() { " held" } else { "" };
        format!("{} {}{held}\n", place.name, place.reached)
    };
    places().iter().map(line).collect()
}

async fn arm(Path(name): Path<String>, order: String) -> Result<(), (StatusCode, String)> {
    let act = read(&order).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let mut all = places();
    let full = || (StatusCode::INSUFFICIENT_STORAGE, "too many places".into());
    let place = place(&mut all, &name).ok_or_else(full)?;
    place.act = act;
    if act.is_none() {
        place.held.send_replace(false);
    }
    Ok(())
}

fn read(order: &str) -> Result<Option<Act>, String> {
    let unknown = || format!("{order:?} is none of kill, pause, sleep MILLISECONDS, off");
    match order.trim().split_once(' ') {
        Some(("sleep", time)) => {
            let time = time.parse().map_err(|_| unknown())?;
            Ok(Some(Act::Sleep(Duration::from_millis(time))))
        }
        Some(_) => Err(unknown()),
        None => match order.trim() {
            "kill" => Ok(Some(Act::Kill)),
            "pause" => Ok(Some(Act::Pause)),
            "off" => Ok(None),
            _ => Err(unknown()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn order(name: &str, what: &str) {
        arm(Path(name.to_owned()), what.to_owned()).await.unwrap();
    }

    #[tokio::test]
    async fn a_pause_holds_one_until_it_is_off() {
        order("test.pause", "pause").await;
        let held = tokio::spawn(reach("test.pause".to_owned()));
        while !list().await.contains("test.pause 1 held") {
            tokio::task::yield_now().await;
        }
        reach("test.pause".to_owned()).await;
        assert!(!held.is_finished());
        order("test.pause", "off").await;
        held.await.unwrap();
        assert!(list().await.contains("test.pause 2\n"));
    }

    #[tokio::test]
    async fn an_unknown_order_is_refused() {
        for wrong in ["", "crash", "sleep", "sleep x", "kill now"] {
            let answer = arm(Path("test.wrong".to_owned()), wrong.to_owned()).await;
            assert_eq!(answer.unwrap_err().0, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }
}
