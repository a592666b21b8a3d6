#pragma once

// The value type of rules and formats (base/scalar.h has the words) over one vector register of the instruction set
// that isa.h chose. Included inside the target region.
namespace forge::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

struct Lanes {
  using D = hn::ScalableTag<float>;
  using U = hn::RebindToUnsigned<D>;
  using Half = hn::Rebind<std::uint16_t, D>;
  static constexpr int kLanes = HWY_LANES(float);

  struct Bits {
    hn::Vec<U> u;
    HWY_INLINE explicit Bits(hn::Vec<U> v) : u(v) {}
    HWY_INLINE explicit Bits(std::uint32_t value) : u(hn::Set(U(), value)) {}
    static HWY_INLINE Bits load_upper16(const std::uint16_t* p) {
      return Bits(hn::ShiftLeft<16>(hn::PromoteTo(U(), hn::LoadU(Half(), p))));
    }
    friend HWY_INLINE Bits operator+(Bits a, Bits b) { return Bits(hn::Add(a.u, b.u)); }
    friend HWY_INLINE Bits operator&(Bits a, Bits b) { return Bits(hn::And(a.u, b.u)); }
    friend HWY_INLINE Bits operator|(Bits a, Bits b) { return Bits(hn::Or(a.u, b.u)); }
    template <int n>
    HWY_INLINE Bits shift_right() const {
      return Bits(hn::ShiftRight<n>(u));
    }
  };

  hn::Vec<D> x;

  Lanes() = default;
  HWY_INLINE explicit Lanes(hn::Vec<D> v) : x(v) {}
  HWY_INLINE explicit Lanes(float value) : x(hn::Set(D(), value)) {}
  static HWY_INLINE Lanes load(const float* p) { return Lanes(hn::LoadU(D(), p)); }
  HWY_INLINE void store(float* p) const { hn::StoreU(x, D(), p); }
  static HWY_INLINE Lanes from_bits(Bits b) { return Lanes(hn::BitCast(D(), b.u)); }
  HWY_INLINE Bits bits() const { return Bits(hn::BitCast(U(), x)); }

  friend HWY_INLINE Lanes operator+(Lanes a, Lanes b) { return Lanes(hn::Add(a.x, b.x)); }
  friend HWY_INLINE Lanes operator-(Lanes a, Lanes b) { return Lanes(hn::Sub(a.x, b.x)); }
  friend HWY_INLINE Lanes operator*(Lanes a, Lanes b) { return Lanes(hn::Mul(a.x, b.x)); }
  friend HWY_INLINE Lanes operator/(Lanes a, Lanes b) { return Lanes(hn::Div(a.x, b.x)); }
  friend HWY_INLINE Lanes operator-(Lanes a) { return Lanes(hn::Neg(a.x)); }
  friend HWY_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return Lanes(hn::MulAdd(a.x, b.x, c.x)); }
  friend HWY_INLINE Lanes sqrt(Lanes a) { return Lanes(hn::Sqrt(a.x)); }
  friend HWY_INLINE Bits select_number(Lanes a, Bits yes, Bits no) {
    return Bits(hn::IfThenElse(hn::RebindMask(U(), hn::Eq(a.x, a.x)), yes.u, no.u));
  }
};

// Two registers of neighbours, for encoding: what packs to half the width fills one register again.
struct LanePair {
  static constexpr int kLanes = 2 * Lanes::kLanes;

  struct Bits {
    Lanes::Bits low, high;
    HWY_INLINE Bits(Lanes::Bits first, Lanes::Bits second) : low(first), high(second) {}
    HWY_INLINE explicit Bits(std::uint32_t value) : low(value), high(value) {}
    HWY_INLINE void store_upper16(std::uint16_t* p) const {
      const hn::Repartition<std::uint16_t, Lanes::U> d;
      hn::StoreU(hn::ConcatOdd(d, hn::BitCast(d, high.u), hn::BitCast(d, low.u)), d, p);
    }
    friend HWY_INLINE Bits operator+(Bits a, Bits b) { return {a.low + b.low, a.high + b.high}; }
    friend HWY_INLINE Bits operator&(Bits a, Bits b) { return {a.low & b.low, a.high & b.high}; }
    friend HWY_INLINE Bits operator|(Bits a, Bits b) { return {a.low | b.low, a.high | b.high}; }
    template <int n>
    HWY_INLINE Bits shift_right() const {
      return {low.shift_right<n>(), high.shift_right<n>()};
    }
  };

  Lanes low, high;

  HWY_INLINE LanePair(Lanes first, Lanes second) : low(first), high(second) {}
  static HWY_INLINE LanePair load(const float* p) { return {Lanes::load(p), Lanes::load(p + Lanes::kLanes)}; }
  HWY_INLINE void store(float* p) const { low.store(p), high.store(p + Lanes::kLanes); }
  HWY_INLINE Bits bits() const { return {low.bits(), high.bits()}; }

  friend HWY_INLINE bool all_numbers(LanePair a) {
    const Lanes::D d;
    return hn::AllTrue(d, hn::And(hn::Eq(a.low.x, a.low.x), hn::Eq(a.high.x, a.high.x)));
  }
  friend HWY_INLINE Bits select_number(LanePair a, Bits yes, Bits no) {
    return {select_number(a.low, yes.low, no.low), select_number(a.high, yes.high, no.high)};
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace forge::cpu
