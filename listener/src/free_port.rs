//! A port for a program that cannot say where it listens, and that may be started again there much later.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

/// Above the ports of well-known services, and below those that Kubernetes gives to services of the type NodePort.
const USUAL: RangeInclusive<u16> = 10_000..=29_999;
/// With fewer candidates the kernel chooses.
const FEWEST_CANDIDATES: u16 = 1000;

/// The kernel's range for connections and for listeners that name no port.
const KERNEL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// A port of the loopback that nothing listens on now and that this process has not been given before. It is outside of the
/// range from which the kernel takes the ports of connections: one of that range may be taken by any connection before the
/// program listens there, or while it is stopped.
pub fn free_port() -> io::Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

    let Some(candidates) = fs::read_to_string(KERNEL_RANGE).ok().and_then(|range| candidates(&range)) else {
        return Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
    };

    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();

    // Several programs that look for a port at the same time should not begin with the same one.
    let (first, count) = (*candidates.start(), candidates.end() - candidates.start() + 1);
    let begin = (RandomState::new().hash_one(()) % u64::from(count)) as u16;

    let mut ports = (0..count).map(|step| first + (begin + step) % count);
    let port = ports.find(|port| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    let port = port.ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no port of the loopback is free"))?;

    given.insert(port);

    Ok(port)
}

/// The ports of [`USUAL`] on the longer side of the kernel's range, whose first and last port are `range`; `None` if there are
/// too few.
fn candidates(range: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = range.split_whitespace().map(|number| number.parse::<u16>().ok());
    let (lowest, highest) = (numbers.next()??, numbers.next()??);
    let (first, last) = USUAL.into_inner();

    let below = first..=last.min(lowest.saturating_sub(1));
    let above = first.max(highest.saturating_add(1))..=last;
    let length = |ports: &RangeInclusive<u16>| ports.end().saturating_sub(*ports.start());
    let longer = if length(&below) >= length(&above) { below } else { above };

    (length(&longer) >= FEWEST_CANDIDATES).then_some(longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_given_once() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn the_kernels_range_is_avoided() {
        for (range, expected) in [
            ("32768\t60999\n", Some(10_000..=29_999)),
            ("20000 60999", Some(10_000..=19_999)),
            ("1024 19999", Some(20_000..=29_999)),
            ("12000 60999", Some(10_000..=11_999)),
            ("15000 16000", Some(16_001..=29_999)),
            // Every port, or nearly so.
            ("1024 65535", None),
            ("10500 65535", None),
            ("0 65535", None),
            ("", None),
            ("1024", None),
            ("a b", None),
        ] {
            assert_eq!(candidates(range), expected, "{range:?}");
        }
    }
}
