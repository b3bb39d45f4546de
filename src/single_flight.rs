//! One request for many askers at the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::runtime::Handle;

use crate::error::{Error, Kind, Result};

/// A share in a request under way.
pub type Flight<V> = Shared<BoxFuture<'static, Result<V>>>;

/// Requests under way, by key. The first asker leads; the others join and get a clone of its answer. The request runs
/// in a task of its own, so it outlives the caller that began it.
pub struct SingleFlight<K, V> {
    runtime: Handle,
    /// Guards only the table; never held while a request runs.
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Requests will run on `runtime`.
    pub fn new(runtime: Handle) -> SingleFlight<K, V> {
        SingleFlight { runtime, flights: Arc::default() }
    }

    /// Joins the request for `key` that is under way, or leads with the one that `request` makes.
    pub fn run<F>(&self, key: K, request: impl FnOnce() -> F) -> Flight<V>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut flights = self.flights.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (table, own_key, request) = (self.flights.clone(), key.clone(), request());
        let task = self.runtime.spawn(async move {
            let _ended = Ended { table, key: own_key };
            request.await
        });
        let flight = task
            .map(|answer| {
                answer.unwrap_or_else(|e| Err(Error::new(Kind::Internal, format!("a request failed: {e}"))))
            })
            .boxed()
            .shared();
        flights.insert(key, flight.clone());
        flight
    }
}

/// Takes a flight off the table, also when its request panicked: the next asker leads anew.
struct Ended<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Ended<K, V> {
    fn drop(&mut self) {
        self.table.lock().unwrap_or_else(|e| e.into_inner()).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_askers_one_request() {
        let flights: SingleFlight<&str, u32> = SingleFlight::new(Handle::current());
        let (asked, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (asked, gate) = (asked.clone(), gate.clone());
            flights.run("key", || async move {
                let answer = asked.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                Ok(answer)
            })
        };
        let askers: Vec<_> = (0..10).map(|_| ask()).collect();
        gate.add_permits(1);
        for asker in askers {
            assert_eq!(asker.await.unwrap(), 0);
        }
        gate.add_permits(1);
        assert_eq!(ask().await.unwrap(), 1, "a later asker leads anew");
    }

    #[tokio::test]
    async fn a_lost_leader_is_an_error_and_then_forgotten() {
        let flights: SingleFlight<(), u32> = SingleFlight::new(Handle::current());
        let lost = flights.run((), || async { panic!("lost") });
        assert_eq!(lost.await.unwrap_err().kind(), Kind::Internal);
        assert_eq!(flights.run((), || async { Ok(7) }).await.unwrap(), 7);
    }
}
