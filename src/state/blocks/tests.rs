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
