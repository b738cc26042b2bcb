//! How many requests wait on this node: in all, of each tenant, and for the tasks of each queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::{Code, Problem};

use crate::http::call::Outcome;

/// Waiting requests.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    all: AtomicUsize,
    tenants: Mutex<BTreeMap<Arc<str>, OfTenant>>,
}

#[derive(Debug, Default)]
struct OfTenant {
    all: usize,
    /// Claims that name no queue.
    of_any_queue: usize,
    /// Claims that name a queue, by its name; nobody: it is not here.
    by_queue: BTreeMap<Box<str>, usize>,
}

/// What a request waits for.
#[derive(Clone, Copy)]
pub(crate) enum For<'a> {
    /// A task or a result to change.
    Change,
    /// A task of these queues; none: of any queue of the tenant.
    Work(&'a [&'a str]),
}

/// One of them; it is counted until this is dropped.
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    tenant: Arc<str>,
    what: For<'a>,
}

impl Waiting {
    /// Counts one more, unless there are too many.
    pub(crate) fn enter<'a>(
        &'a self,
        tenant: &Arc<str>,
        what: For<'a>,
        all_max: usize,
        tenant_max: usize,
    ) -> Outcome<Place<'a>> {
        let mut tenants = self.tenants.lock().expect("nothing panics while it holds this lock");
        if self.all.load(Ordering::Relaxed) >= all_max {
            let problem = Problem::new(Code::Overloaded, "limits.waiters is reached; ask without waiting");
            return Err(Box::new(problem.retry_after(1000)));
        }
        let of_tenant = tenants.entry(tenant.clone()).or_default();
        if of_tenant.all >= tenant_max {
            let problem = Problem::new(Code::TooManyWaiters, "limits.waitersPerTenant is reached; ask without waiting");
            return Err(Box::new(problem.retry_after(1000)));
        }
        of_tenant.all += 1;
        match what {
            For::Change => {}
            For::Work([]) => of_tenant.of_any_queue += 1,
            For::Work(queues) => {
                queues.iter().for_each(|queue| *of_tenant.by_queue.entry((*queue).into()).or_default() += 1);
            }
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        Ok(Place { waiting: self, tenant: tenant.clone(), what })
    }

    /// Claims that a task of this queue could serve.
    pub(crate) fn for_work_of(&self, tenant: &str, queue: &str) -> usize {
        let tenants = self.tenants.lock().expect("nothing panics while it holds this lock");
        tenants.get(tenant).map_or(0, |of| of.of_any_queue + of.by_queue.get(queue).copied().unwrap_or_default())
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut tenants = self.waiting.tenants.lock().expect("nothing panics while it holds this lock");
        self.waiting.all.fetch_sub(1, Ordering::Relaxed);
        let of_tenant = tenants.get_mut(&self.tenant).expect("who waits is counted");
        of_tenant.all -= 1;
        match self.what {
            For::Change => {}
            For::Work([]) => of_tenant.of_any_queue -= 1,
            For::Work(queues) => queues.iter().for_each(|queue| {
                let count = of_tenant.by_queue.get_mut(*queue).expect("who waits is counted");
                *count -= 1;
                if *count == 0 {
                    of_tenant.by_queue.remove(*queue);
                }
            }),
        }
        if of_tenant.all == 0 {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_places_come_back() {
        let waiting = Waiting::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let code = |tenant| waiting.enter(tenant, For::Change, 3, 2).map(|_| ()).map_err(|problem| problem.code);
        let first = waiting.enter(&a, For::Work(&["x", "y"]), 3, 2);
        let second = waiting.enter(&a, For::Work(&[]), 3, 2);
        let work = |tenant| ["x", "z"].map(|queue| waiting.for_work_of(tenant, queue));
        assert_eq!((work("a"), work("b")), ([2, 1], [0, 0]));
        assert_eq!(code(&a), Err(Code::TooManyWaiters));
        let third = waiting.enter(&b, For::Change, 3, 2);
        assert_eq!(code(&b), Err(Code::Overloaded));
        drop(first);
        assert_eq!(work("a"), [1, 1]);
        drop(second);
        assert_eq!(code(&a), Ok(()));
        drop(third);
        assert_eq!(waiting.len(), 0);
        assert!(waiting.tenants.lock().expect("it is free").is_empty());
    }
}
