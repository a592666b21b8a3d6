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
    static HWY_INLINE Bits load16(const std::uint16_t* p) { return Bits(hn::PromoteTo(U(), hn::LoadU(Half(), p))); }
    HWY_INLINE void store16(std::uint16_t* p) const {
      // A saturating demotion from int32 keeps values up to 65535, which the upper half is zero for.
      hn::StoreU(hn::DemoteTo(Half(), hn::BitCast(hn::RebindToSigned<U>(), u)), Half(), p);
    }
    friend HWY_INLINE Bits operator+(Bits a, Bits b) { return Bits(hn::Add(a.u, b.u)); }
    friend HWY_INLINE Bits operator&(Bits a, Bits b) { return Bits(hn::And(a.u, b.u)); }
    friend HWY_INLINE Bits operator|(Bits a, Bits b) { return Bits(hn::Or(a.u, b.u)); }
    template <int n>
    HWY_INLINE Bits shift_left() const {
      return Bits(hn::ShiftLeft<n>(u));
    }
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

}  // namespace HWY_NAMESPACE
}  // namespace forge::cpu
