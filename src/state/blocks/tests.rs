//! What the shadows of the caches promise.

use super::*;

fn keys(numbers: std::ops::Range<u64>) -> Arc<[BlockKey]> {
    numbers.map(|number| BlockKey(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

#[test]
fn a_prompt_is_held_from_dispatch_on_and_stays_when_it_is_confirmed() {
    let blocks = Arc::new(Blocks::new(&[1000, 1000]));
    let prompt = keys(0..5);
    assert_eq!(blocks.held(&prompt), [0, 0]);
    let mut expected = blocks.expect(1, &prompt, 10);
    assert_eq!(blocks.held(&prompt), [0, 5]);
    expected.confirm();
    drop(expected);
    assert_eq!((blocks.held(&prompt), blocks.tokens(1)), (vec![0, 5], 50));
    drop(blocks.expect(0, &prompt, 10));
    assert_eq!(blocks.held(&prompt), [0, 5], "the try failed");
}

#[test]
fn what_a_try_in_flight_is_about_to_bring_is_not_truncated() {
    let blocks = Arc::new(Blocks::new(&[1000]));
    let (start, whole) = (keys(0..4), keys(0..6));
    blocks.expect(0, &start, 10).confirm();
    let mut expected = blocks.expect(0, &whole, 10);
    assert!(blocks.is_expected(0, whole[5]) && !blocks.is_expected(0, whole[3]));
    blocks.truncate(0, &whole, 2);
    assert_eq!((blocks.held(&whole), blocks.truncated()), (vec![6], 0), "nor what is before it");
    expected.confirm();
    assert!(!blocks.is_expected(0, whole[5]));
    blocks.truncate(0, &whole, 2);
    assert_eq!((blocks.held(&whole), blocks.truncated(), blocks.blocks(0)), (vec![2], 4, 2));
}
